// The page: a canvas to draw on, and what the network makes of the drawing.
"use strict";

const element = id => document.getElementById(id);
const model = JSON.parse(element("model").textContent);
const network = makeNetwork(model.layers, decodeWeights(model.weights));
const paper = element("paper"), context = paper.getContext("2d", {willReadFrequently: true});
const KEY_STEP = 8, MAX_PHOTO = 800, NOTHING = "Nothing is drawn yet.";
const strokes = [];  // each {width, points}
const cursor = {x: 140, y: 140, isDown: false};
let photo = null;  // {data, width, height, bitmap}, instead of strokes
let active = null, isScheduled = false, notice = NOTHING;

const bars = Array.from({length: 10}, (_, digit) => {
  const item = document.createElement("li");
  item.innerHTML = `<span>${digit}</span><div class="track" role="meter" aria-label="Probability of ${digit}"
    aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"><div class="bar"></div></div><span class="share">–</span>`;
  element("bars").append(item);
  return item;
});

// What the page shows for an image of 28x28 gray levels; used by the tests too.
function recognize(image) {
  const {probabilities, maps} = network(image);
  return {probabilities, calibrated: calibrate(probabilities, model.temperature), maps};
}

function theme(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Drawing

function draw() {
  context.fillStyle = theme("--paper");
  context.fillRect(0, 0, paper.width, paper.height);
  if (photo) {
    const scale = Math.min(paper.width / photo.width, paper.height / photo.height);
    const [width, height] = [photo.width * scale, photo.height * scale];
    context.drawImage(photo.bitmap, (paper.width - width) / 2, (paper.height - height) / 2, width, height);
  }
  context.strokeStyle = theme("--ink");
  context.lineCap = context.lineJoin = "round";
  for (const {width, points} of strokes) {
    context.lineWidth = width;
    context.beginPath();
    points.forEach(({x, y}) => context.lineTo(x, y));
    if (points.length === 1) context.lineTo(points[0].x + 0.01, points[0].y);
    context.stroke();
  }
}

function drawCursor() {
  if (document.activeElement !== paper || !paper.matches(":focus-visible")) return;
  context.strokeStyle = theme("--accent");
  context.fillStyle = theme("--accent");
  context.lineWidth = 2;
  context.beginPath();
  context.arc(cursor.x, cursor.y, Math.max(element("width").value / 2, 4), 0, 7);
  if (cursor.isDown) context.fill(); else context.stroke();
}

function update() {
  isScheduled = false;
  draw();
  if (photo || strokes.length) {
    const start = performance.now();
    const source = photo || context.getImageData(0, 0, paper.width, paper.height);
    try {
      const {image, isDoubtful} = prepareDigit(source.data, source.width, source.height);
      const result = recognize(image);
      show(image, {...result, isDoubtful}, performance.now() - start);
    } catch (error) {
      if (!(error instanceof NoDigit)) throw error;
      showNothing("There is no digit to see: the ink and the background are too similar.");
    }
  } else {
    showNothing(notice);
  }
  drawCursor();
}

function schedule() {
  if (!isScheduled) requestAnimationFrame(update);
  isScheduled = true;
}

// Results

function percent(probability) {
  return `${(100 * probability).toFixed(1)}%`;
}

function show(image, {calibrated, maps, isDoubtful}, milliseconds) {
  const order = [...calibrated.keys()].sort((a, b) => calibrated[b] - calibrated[a]);
  calibrated.forEach((probability, digit) => {
    const item = bars[digit], meter = item.querySelector(".track");
    item.classList.toggle("best", digit === order[0]);
    item.querySelector(".bar").style.width = `${100 * probability}%`;
    item.querySelector(".share").textContent = percent(probability);
    meter.setAttribute("aria-valuenow", (100 * probability).toFixed(1));
    meter.setAttribute("aria-valuetext", percent(probability));
  });
  const isUnsure = isDoubtful || calibrated[order[0]] < model.unsure_below;
  const text = `${isUnsure ? "Unsure: " : ""}${order[0]}, then ${order[1]}`;
  setResult(text, isUnsure);
  element("time").textContent = `Computed in ${milliseconds.toFixed(0)} ms, in this page.`;
  showImage(image);
  showMaps(maps);
}

function showNothing(text) {
  for (const item of bars) {
    item.classList.remove("best");
    item.querySelector(".bar").style.width = 0;
    item.querySelector(".share").textContent = "–";
    item.querySelector(".track").setAttribute("aria-valuenow", "0");
    item.querySelector(".track").removeAttribute("aria-valuetext");
  }
  setResult(text, false);
  element("time").textContent = "";
  showImage(new Uint8Array(784));
  showMaps(network(new Uint8Array(784)).maps.map(map => ({...map, data: map.data.map(() => 0)})));
}

function setResult(text, isUnsure) {
  // Only a change is written, so that a screen reader does not repeat itself.
  if (element("result").textContent !== text) element("result").textContent = text;
  element("result").classList.toggle("unsure", isUnsure);
}

function showImage(image) {
  const target = element("input").getContext("2d"), pixels = target.createImageData(28, 28);
  image.forEach((level, i) => pixels.data.set([level, level, level, 255], 4 * i));
  target.putImageData(pixels, 0, 0);
}

// The maps after the activations of the first two layers that have them.
function showMaps(maps) {
  const shown = maps.filter(map => map.kind === "relu" || map.kind === "tanh").slice(0, 2);
  const figures = element("maps");
  figures.querySelectorAll("figure").forEach((figure, i) => { if (i >= shown.length) figure.remove(); });
  shown.forEach((map, i) => {
    let figure = figures.children[i];
    if (!figure) {
      figure = document.createElement("figure");
      figure.innerHTML = '<figcaption></figcaption><canvas role="img"></canvas>';
      figures.append(figure);
    }
    const text = `Layer ${i + 1}: ${map.channels} maps of ${map.width}×${map.height}`;
    figure.querySelector("figcaption").textContent = text;
    drawMaps(figure.querySelector("canvas"), map);
    figure.querySelector("canvas").setAttribute("aria-label", text);
  });
}

function drawMaps(canvas, {data, channels, height, width}) {
  const columns = Math.min(channels, innerWidth < 640 ? 16 : 32), rows = Math.ceil(channels / columns);
  const cell = [width + 1, height + 1];
  canvas.width = columns * cell[0] - 1;
  canvas.height = rows * cell[1] - 1;
  const target = canvas.getContext("2d"), pixels = target.createImageData(canvas.width, canvas.height);
  const [paperColour, inkColour] = [theme("--surface"), theme("--ink")].map(parseColour);
  for (let channel = 0; channel < channels; channel++) {
    const start = channel * height * width;
    let largest = 1e-6;
    for (let i = 0; i < height * width; i++) largest = Math.max(largest, Math.abs(data[start + i]));
    for (let i = 0; i < height * width; i++) {
      const x = channel % columns * cell[0] + i % width;
      const y = Math.floor(channel / columns) * cell[1] + Math.floor(i / width);
      const share = Math.abs(data[start + i]) / largest;
      const colour = paperColour.map((level, j) => level + share * (inkColour[j] - level));
      pixels.data.set([...colour, 255], 4 * (y * canvas.width + x));
    }
  }
  target.putImageData(pixels, 0, 0);
}

function parseColour(text) {
  const digits = text.length === 4 ? text.slice(1).replace(/./g, "$&$&") : text.slice(1);
  return [0, 2, 4].map(i => parseInt(digits.slice(i, i + 2), 16));
}

// Controls

function position(event) {
  const box = paper.getBoundingClientRect(), border = paper.clientLeft;
  return {x: (event.clientX - box.left - border) * paper.width / paper.clientWidth,
    y: (event.clientY - box.top - border) * paper.height / paper.clientHeight};
}

function begin(point) {
  photo = null;
  notice = NOTHING;
  active = {width: Number(element("width").value), points: [point]};
  strokes.push(active);
  schedule();
}

function clear(text = NOTHING) {
  notice = text;
  strokes.length = 0;
  photo = active = null;
  cursor.isDown = false;
  schedule();
}

function undo() {
  if (photo) photo = null; else strokes.pop();
  active = null;
  cursor.isDown = false;
  schedule();
}

paper.addEventListener("pointerdown", event => {
  if (event.button) return;
  paper.setPointerCapture(event.pointerId);
  cursor.isDown = false;
  begin(position(event));
});
paper.addEventListener("pointermove", event => {
  if (!active || cursor.isDown) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  active.points.push(...(events.length ? events : [event]).map(position));
  schedule();
});
for (const name of ["pointerup", "pointercancel"]) paper.addEventListener(name, () => { active = null; });
for (const name of ["focus", "blur"]) paper.addEventListener(name, schedule);

paper.addEventListener("keydown", event => {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  if (moves[event.key]) {
    const [right, down] = moves[event.key], step = event.shiftKey ? 2 : KEY_STEP;
    cursor.x = Math.min(Math.max(cursor.x + right * step, 0), paper.width);
    cursor.y = Math.min(Math.max(cursor.y + down * step, 0), paper.height);
    if (cursor.isDown) active.points.push({x: cursor.x, y: cursor.y});
    schedule();
  } else if (event.key === " ") {
    cursor.isDown = !cursor.isDown;
    if (cursor.isDown) begin({x: cursor.x, y: cursor.y}); else active = null;
    schedule();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
    undo();
  } else {
    return;
  }
  event.preventDefault();
});

element("clear").addEventListener("click", () => clear());
element("undo").addEventListener("click", undo);
element("photo").addEventListener("change", async event => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    openPhoto(await createImageBitmap(file));
  } catch {
    clear("This file is not an image that the browser can read.");
  }
});

function openPhoto(bitmap) {
  const scale = Math.min(1, MAX_PHOTO / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const target = canvas.getContext("2d");
  target.fillStyle = "white";  // below what is transparent
  target.fillRect(0, 0, canvas.width, canvas.height);
  target.imageSmoothingQuality = "high";
  target.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const {data, width, height} = target.getImageData(0, 0, canvas.width, canvas.height);
  clear();
  photo = {data, width, height, bitmap};
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);
addEventListener("resize", schedule);
update();
