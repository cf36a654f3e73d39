// Finds the ink of a digit, also on a sheet, in a window or in a box, and on ruled paper. The same procedure as
// pipeline/extras/recognize/photos.py.
"use strict";

const MIN_FILL = 0.88, MIN_SHEET = 0.2, MARGIN = 0.03, MAX_DEPTH = 4;
const ANGLES = Array.from({length: 90}, (_, i) => (i - 45) * (Math.PI / 180));
const MIN_CONTENT = 0.15, MAX_CONTENT = 0.9, MIN_BLOCK = 0.25, MAX_FILL = 0.85;
const SLOPES = Array.from({length: 49}, (_, i) => (i - 24) / 100), LINE_COVERAGE = 0.7;
const MAX_LINE = 6, MAX_GAP = 4;
const MIN_SHARP = 0.9, EDGE = 0.4, MIN_EXTENT = 0.75;

function findDigit(data, width, height, depth) {
  const gray = toGray(resizeImage(data, width, height)), allInk = findInk(gray);
  const withoutLines = removeRuling(allInk), isRuled = withoutLines !== allInk;
  for (const rectangle of isRuled || depth === MAX_DEPTH ? [] : findRectangles(gray, allInk)) {
    const inside = cutOut(data, width, height, rectangle);
    try {
      return findDigit(inside.data, inside.width, inside.height, depth + 1);
    } catch (error) {
      if (!(error instanceof NoDigit)) throw error;
    }
  }
  const digit = selectParts(withoutLines), ink = crop(digit), rectangle = fitRectangle(fillHoles(ink));
  const shorter = Math.min(rectangle.width, rectangle.height), longer = Math.max(rectangle.width, rectangle.height);
  if (depth) {
    const shares = [ink.width / gray.width, ink.height / gray.height];
    const isSolid = Math.min(...shares) > MIN_BLOCK && count(ink.values) > MIN_FILL * shorter * longer;
    if (Math.max(...shares) < MIN_CONTENT || Math.min(...shares) > MAX_CONTENT || isSolid) {
      throw new NoDigit("no digit is in the sheet");
    }
  }
  const isBlock = rectangle.fill > MAX_FILL && 2 * shorter > longer;
  return {ink, isDoubtful: isBlock || isDoubtfulDigit(digit, gray)};
}

function count(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

function findRectangles(gray, ink) {
  const {width, height} = gray, threshold = otsuThreshold(gray.levels), frame = new Set(frameOf(width, height));
  const isBright = gray.levels.map(level => level > threshold), rectangles = [];
  for (const mask of [ink.values, isBright, isBright.map(value => 1 - value)]) {
    const {parts, areas} = labelParts({values: mask, width, height});
    const contacts = areas.map(() => 0);
    for (const i of frame) contacts[parts[i]]++;
    const boxes = areas.map(() => ({left: width, right: -1, top: height, bottom: -1}));
    parts.forEach((label, i) => {
      const x = i % width, y = (i - x) / width, box = boxes[label];
      if (x < box.left) box.left = x;
      if (x > box.right) box.right = x;
      if (y < box.top) box.top = y;
      if (y > box.bottom) box.bottom = y;
    });
    boxes.forEach(({left, right, top, bottom}, label) => {
      const newWidth = right - left + 1, newHeight = bottom - top + 1;
      if (!label || Math.min(newWidth, newHeight) < MIN_SHEET * Math.max(width, height)
          || contacts[label] > BORDER_CONTACT * frame.size) return;
      const values = new Uint8Array(newWidth * newHeight);
      for (let i = 0; i < values.length; i++) {
        const x = i % newWidth, y = (i - x) / newWidth;
        values[i] = parts[(top + y) * width + left + x] === label;
      }
      const fitted = fitRectangle(fillHoles({values, width: newWidth, height: newHeight}));
      const placed = {...fitted, x: fitted.x + left, y: fitted.y + top};
      const isKnown = rectangles.some(other => Object.keys(placed).every(key => placed[key] === other[key]));
      if (placed.fill >= MIN_FILL && !isKnown) rectangles.push(placed);
    });
  }
  return rectangles.sort((a, b) => b.width * b.height - a.width * a.height);
}

function fitRectangle({values, width, height}) {
  const points = [];
  for (let y = 0; y < height; y++) {
    const row = values.subarray(y * width, (y + 1) * width);
    points.push([Math.max(row.indexOf(1), 0), y], [row.includes(1) ? row.lastIndexOf(1) : width - 1, y]);
  }
  let best = null;
  for (const angle of ANGLES) {
    const cos = Math.cos(angle), sin = Math.sin(angle), pixel = Math.abs(cos) + Math.abs(sin);
    let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
    for (const [x, y] of points) {
      const u = x * cos + y * sin, v = y * cos - x * sin;
      left = Math.min(left, u); right = Math.max(right, u); top = Math.min(top, v); bottom = Math.max(bottom, v);
    }
    const area = (right - left + pixel) * (bottom - top + pixel);
    if (best && area >= best.width * best.height) continue;
    const u = (left + right) / 2, v = (top + bottom) / 2;
    best = {x: u * cos - v * sin + 0.5, y: u * sin + v * cos + 0.5, angle,
            width: right - left + pixel, height: bottom - top + pixel};
  }
  return {...best, fill: count(values) / (best.width * best.height)};
}

// What is not connected with the frame, by sides of pixels, is filled.
function fillHoles({values, width, height}) {
  const filled = new Uint8Array(values.length).fill(1), stack = [];
  const visit = i => {
    if (values[i] || !filled[i]) return;
    filled[i] = 0;
    stack.push(i);
  };
  frameOf(width, height).forEach(visit);
  while (stack.length) {
    const i = stack.pop(), x = i % width;
    if (x) visit(i - 1);
    if (x < width - 1) visit(i + 1);
    if (i >= width) visit(i - width);
    if (i + width < values.length) visit(i + width);
  }
  return {values: filled, width, height};
}

function cutOut(data, imageWidth, imageHeight, {x, y, width, height, angle}) {
  const scale = Math.max(imageWidth, imageHeight) / WORK_SIZE, margin = MARGIN * Math.min(width, height) + 1;
  const [newWidth, newHeight] = [width, height].map(n => Math.max(1, Math.round((n - 2 * margin) * scale)));
  const result = new Uint8ClampedArray(4 * newWidth * newHeight), cos = Math.cos(angle), sin = Math.sin(angle);
  const clip = (value, n) => Math.min(Math.max(value, 0), n - 1);
  for (let i = 0; i < newHeight; i++) {
    const v = (i + 0.5) / scale + margin - height / 2;
    for (let j = 0; j < newWidth; j++) {
      const u = (j + 0.5) / scale + margin - width / 2;
      const column = clip((x + u * cos - v * sin) * scale - 0.5, imageWidth);
      const row = clip((y + u * sin + v * cos) * scale - 0.5, imageHeight);
      const left = Math.floor(column), top = Math.floor(row), toRight = column - left, down = row - top;
      const right = Math.min(left + 1, imageWidth - 1), bottom = Math.min(top + 1, imageHeight - 1);
      for (let channel = 0; channel < 3; channel++) {
        const at = (s, t) => data[4 * (t * imageWidth + s) + channel];
        const upper = at(left, top) * (1 - toRight) + at(right, top) * toRight;
        const lower = at(left, bottom) * (1 - toRight) + at(right, bottom) * toRight;
        result[4 * (i * newWidth + j) + channel] = Math.floor(upper * (1 - down) + lower * down + 0.5);
      }
    }
  }
  return {data: result, width: newWidth, height: newHeight};
}

function removeRuling(ink) {
  const {values, width, height} = ink, turned = new Uint8Array(values.length);
  values.forEach((value, i) => { turned[i % width * height + Math.floor(i / width)] = value; });
  const across = findLines(ink), down = findLines({values: turned, width: height, height: width});
  const isLine = values.map((_, i) => across[i] || down[i % width * height + Math.floor(i / width)]);
  const rest = values.map((value, i) => value && !isLine[i]);
  if (!isLine.includes(1) || !rest.includes(1)) return ink;
  const margin = 2 * MAX_GAP, padded = pad({values: rest, width, height}, margin);
  const invert = mask => ({...mask, values: mask.values.map(value => 1 - value)});
  const closed = invert(dilate(invert(dilate(padded, MAX_GAP)), MAX_GAP));
  const isClosed = i => closed.values[(Math.floor(i / width) + margin) * closed.width + i % width + margin];
  return {values: rest.map((value, i) => value || (isClosed(i) && values[i])), width, height};
}

// 1 where lines are that run from left to right.
function findLines({values, width, height}) {
  const nRows = height + 2 * width, isLeft = x => x < width / 20, isRight = x => x >= width - width / 20;
  const points = [];
  values.forEach((value, i) => { if (value) points.push([i % width, Math.floor(i / width)]); });
  const isAcross = points.some(([x]) => isLeft(x)) && points.some(([x]) => isRight(x));
  let most = 0, best = null;
  for (const slope of isAcross ? SLOPES : []) {
    const shifts = Array.from({length: width}, (_, x) => width - Math.floor(slope * (x - width / 2) + 0.5));
    const counts = new Int32Array(nRows), changes = new Int32Array(nRows + 1);
    const left = new Uint8Array(nRows), right = new Uint8Array(nRows);
    for (const [x, y] of points) {
      const row = y + shifts[x];
      counts[row]++;
      if (isLeft(x)) left[row] = 1;
      if (isRight(x)) right[row] = 1;
    }
    for (const shift of shifts) { changes[shift]++; changes[shift + height]--; }
    let length = 0, covered = 0, nLines = 0;
    const isLine = counts.map((n, row) => {
      length += changes[row];
      return n >= LINE_COVERAGE * length && length >= width / 2 ? 1 : 0;
    });
    for (let row = 0, end; row < nRows; row = end + 1) {
      for (end = row; isLine[end]; end++);
      if (end - row > MAX_LINE) isLine.fill(0, row, end);
    }
    const isNear = (side, row) => side.subarray(Math.max(row - 2, 0), row + 3).includes(1);
    const through = isLine.map((value, row) => value && isNear(left, row) && isNear(right, row));
    isLine.forEach((value, row) => {
      if (value) covered += counts[row];
      if (through[row] && row && !through[row - 1]) nLines++;
    });
    if (covered > most && nLines >= 2) { most = covered; best = {isLine, shifts}; }
  }
  return values.map((_, i) => {
    if (!best) return 0;
    const row = Math.floor(i / width) + best.shifts[i % width];
    return best.isLine[row] || best.isLine[row - 1] || best.isLine[row + 1] ? 1 : 0;
  });
}

function isDoubtfulDigit(digit, gray) {
  const {values, width, height} = digit, {parts, areas} = labelParts(digit);
  const label = areas.indexOf(Math.max(...areas));
  const largest = crop({values: values.map((_, i) => parts[i] === label), width, height}), whole = crop(digit);
  const extent = Math.min(largest.width / whole.width, largest.height / whole.height);
  const clip = (value, n) => Math.min(Math.max(value, 0), n - 1);
  const at = (x, y) => gray.levels[clip(y, height) * width + clip(x, width)];
  const slopes = Float64Array.from(values, (_, i) => {
    const x = i % width, y = (i - x) / width;
    return Math.sqrt((at(x + 1, y) - at(x - 1, y)) ** 2 + (at(x, y + 1) - at(x, y - 1)) ** 2);
  });
  const edges = [];
  values.forEach((value, i) => {
    const x = i % width, y = (i - x) / width;
    const isInner = (x === 0 || values[i - 1]) && (x === width - 1 || values[i + 1])
      && (y === 0 || values[i - width]) && (y === height - 1 || values[i + width]);
    if (!value || isInner) return;
    let edge = 0;
    for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
      for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
        edge = Math.max(edge, slopes[v * width + u]);
      }
    }
    edges.push(edge);
  });
  edges.sort((a, b) => a - b);
  const limit = EDGE * edges[Math.floor(3 * edges.length / 4)];
  const sharp = edges.length ? edges.filter(edge => edge > limit).length / edges.length : 0;
  return frameOf(width, height).some(i => values[i]) || extent < MIN_EXTENT || sharp < MIN_SHARP;
}
