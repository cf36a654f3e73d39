// Brings a drawing or a photo of a digit to MNIST's form. The same procedure as pipeline/extras/recognize/photos.py,
// where each step and each number is explained; a test compares the two.
"use strict";

const SIDE = 28, BOX = 20, CENTRE = 14, WORK_SIZE = 200, COARSE = 4, WINDOW = 25, FLAT_FRAME = 0.95, DARKNESS = 16;
const MIN_CONTRAST = 25, BORDER_CONTACT = 0.05, MIN_AREA = 0.004, MIN_PART = 0.04, STROKE_WIDTH = 2;

class NoDigit extends Error {}

// data: RGBA bytes, as of a canvas; without transparency. Returns the 28x28 gray levels, and whether the digit is
// doubtful; throws NoDigit.
function prepareDigit(data, width, height) {
  const {ink, isDoubtful} = findDigit(data, width, height, 0);
  return {image: fitBox(crop(thicken(ink))), isDoubtful};
}

// For each of nOut values: the first of nIn values that it depends on, and their weights.
function resampling(nIn, nOut) {
  const step = nIn / nOut;
  if (nOut <= nIn) return overlaps(0, step, nOut, nIn);
  return Array.from({length: nOut}, (_, i) => {
    const position = Math.min(Math.max((i + 0.5) * step - 0.5, 0), nIn - 1), first = Math.floor(position);
    const part = position - first;
    return {first, weights: part > 0 ? [1 - part, part] : [1]};
  });
}

function overlaps(start, step, nCells, nIn) {
  return Array.from({length: nCells}, (_, cell) => {
    const low = start + step * cell, high = low + step;
    const first = Math.max(0, Math.floor(low)), weights = [];
    for (let i = first; i < Math.min(nIn, Math.ceil(high)); i++) {
      weights.push((Math.min(high, i + 1) - Math.max(low, i)) / step);
    }
    return {first, weights};
  });
}

function resample(values, width, rows, columns) {
  const newWidth = columns.length, result = new Float64Array(rows.length * newWidth);
  const line = new Float64Array(width);
  rows.forEach(({first, weights}, y) => {
    line.fill(0);
    weights.forEach((weight, i) => {
      const start = (first + i) * width;
      for (let x = 0; x < width; x++) line[x] += weight * values[start + x];
    });
    columns.forEach((column, x) => {
      let sum = 0;
      for (let i = 0; i < column.weights.length; i++) sum += column.weights[i] * line[column.first + i];
      result[y * newWidth + x] = sum;
    });
  });
  return result;
}

function resizeImage(data, width, height) {
  const scale = WORK_SIZE / Math.max(width, height);
  const newWidth = Math.max(1, Math.round(width * scale)), newHeight = Math.max(1, Math.round(height * scale));
  const rows = resampling(height, newHeight), columns = resampling(width, newWidth);
  const channels = [0, 1, 2].map(channel => {
    const values = new Float64Array(width * height);
    for (let i = 0; i < values.length; i++) values[i] = data[4 * i + channel];
    return resample(values, width, rows, columns);
  });
  return {channels, width: newWidth, height: newHeight};
}

function toGray({channels, width, height}) {
  const size = width * height;
  const means = channels.map(values => values.reduce((sum, value) => sum + value, 0) / size);
  const covariance = [0, 1, 2].map(i => [0, 1, 2].map(j => {
    let sum = 0;
    for (let k = 0; k < size; k++) sum += (channels[i][k] - means[i]) * (channels[j][k] - means[j]);
    return sum / size;
  }));
  let largest = 0;
  for (let i = 1; i < 3; i++) if (covariance[i][i] > covariance[largest][largest]) largest = i;
  const varies = Math.max(...covariance.flat()) > 1e-6;
  let weights = Math.max(...covariance[largest]) < 1e-6 ? [1, 1, 1] : covariance[largest];
  for (let step = 0; step < 30; step++) {
    const previous = weights;
    if (varies) weights = covariance.map(row => row[0] * previous[0] + row[1] * previous[1] + row[2] * previous[2]);
    const norm = weights.reduce((sum, weight) => sum + Math.abs(weight), 0);
    weights = weights.map(weight => weight / norm);
  }
  const offset = -255 * weights.reduce((sum, weight) => sum + Math.min(weight, 0), 0);
  const levels = new Uint8Array(size);
  for (let k = 0; k < size; k++) {
    const level = weights[0] * channels[0][k] + weights[1] * channels[1][k] + weights[2] * channels[2][k] + offset;
    levels[k] = Math.min(Math.max(Math.round(level), 0), 255);
  }
  return {levels, width, height};
}

// The indices of the pixels at the frame; the corners count twice, as in Python.
function frameOf(width, height) {
  const frame = [];
  for (let x = 0; x < width; x++) frame.push(x, (height - 1) * width + x);
  for (let y = 0; y < height; y++) frame.push(y * width, y * width + width - 1);
  return frame;
}

function findInk({levels: gray, width, height}) {
  const size = width * height, threshold = otsuThreshold(gray);
  const frame = frameOf(width, height);
  const nBright = frame.filter(i => gray[i] > threshold).length;
  const isBright = nBright / frame.length > 0.5, nFlat = isBright ? nBright : frame.length - nBright;
  const values = new Uint8Array(size);
  if (nFlat / frame.length >= FLAT_FRAME) {
    for (let i = 0; i < size; i++) values[i] = (gray[i] > threshold) !== isBright;
    return requireContrast(values, gray, width, height);
  }
  const background = localBackground(gray, width, height), contrast = new Float64Array(size);
  let skewness = 0;
  for (let i = 0; i < size; i++) {
    const low = Math.min(gray[i], background[i]), high = Math.max(gray[i], background[i]);
    const ratio = 1 - (low + DARKNESS) / (high + DARKNESS);
    contrast[i] = gray[i] < background[i] ? ratio : -ratio;
    skewness += contrast[i] ** 3;
  }
  const sign = skewness >= 0 ? 1 : -1, levels = new Uint8Array(size);
  for (let i = 0; i < size; i++) levels[i] = Math.round(Math.max(0, 255 * sign * contrast[i]));
  const inkThreshold = otsuThreshold(levels);
  for (let i = 0; i < size; i++) values[i] = levels[i] > inkThreshold;
  return requireContrast(values, levels, width, height);
}

function requireContrast(values, levels, width, height) {
  let nInk = 0, inkSum = 0, sum = 0;
  for (let i = 0; i < values.length; i++) {
    sum += levels[i];
    if (values[i]) { nInk++; inkSum += levels[i]; }
  }
  if (!nInk || Math.abs(inkSum / nInk - (sum - inkSum) / (values.length - nInk)) < MIN_CONTRAST) {
    throw new NoDigit("no digit stands out from the background");
  }
  return {values, width, height};
}

function otsuThreshold(levels) {
  const counts = new Array(256).fill(0);
  for (const level of levels) counts[level]++;
  const total = counts.reduce((sum, count, level) => sum + count * level, 0);
  let best = -1, threshold = 0, below = 0, sum = 0;
  for (let level = 0; level < 255; level++) {
    below += counts[level];
    sum += counts[level] * level;
    const above = levels.length - below;
    const difference = sum / Math.max(below, 1) - (total - sum) / Math.max(above, 1);
    const separation = below && above ? below * above * difference ** 2 : -1;
    if (separation > best) { best = separation; threshold = level; }
  }
  return threshold;
}

function localBackground(gray, width, height) {
  const newWidth = Math.max(1, Math.floor(width / COARSE)), newHeight = Math.max(1, Math.floor(height / COARSE));
  const coarse = resample(gray, width, resampling(height, newHeight), resampling(width, newWidth)).map(Math.round);
  const medians = new Float64Array(coarse.length), reach = Math.floor(WINDOW / 2), counts = new Int32Array(256);
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      counts.fill(0);
      for (let dy = -reach; dy <= reach; dy++) {
        const row = Math.min(Math.max(y + dy, 0), newHeight - 1) * newWidth;
        for (let dx = -reach; dx <= reach; dx++) counts[coarse[row + Math.min(Math.max(x + dx, 0), newWidth - 1)]]++;
      }
      let level = 0;
      for (let seen = counts[0]; seen <= (WINDOW * WINDOW - 1) / 2; seen += counts[level]) level++;
      medians[y * newWidth + x] = level;
    }
  }
  return resample(medians, newWidth, resampling(newHeight, height), resampling(newWidth, width));
}

// The number of each pixel's connected part, 0 for the background, and the areas of the parts.
function labelParts({values, width, height}) {
  const parts = new Int32Array(values.length), areas = [0];
  for (let start = 0; start < values.length; start++) {
    if (!values[start] || parts[start]) continue;
    const label = areas.push(0) - 1, stack = [start];
    parts[start] = label;
    while (stack.length) {
      const i = stack.pop(), x = i % width, y = (i - x) / width;
      areas[label]++;
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
          const neighbour = v * width + u;
          if (values[neighbour] && !parts[neighbour]) { parts[neighbour] = label; stack.push(neighbour); }
        }
      }
    }
  }
  return {parts, areas};
}

function selectParts(ink) {
  const {values, width, height} = ink, {parts, areas} = labelParts(ink);
  const contacts = areas.map(() => 0), frame = new Set(frameOf(width, height));
  for (const i of frame) contacts[parts[i]]++;
  const isInside = contacts.map(contact => contact <= BORDER_CONTACT * frame.size);
  const keep = condition => areas.forEach((_, label) => { if (!condition(label)) areas[label] = 0; });
  if (areas.some((area, label) => label && isInside[label] && area >= MIN_AREA * values.length)) {
    keep(label => isInside[label]);
  }
  if (!contacts[areas.indexOf(Math.max(...areas))]) keep(label => !contacts[label]);
  const minimum = Math.max(1, MIN_PART * Math.max(...areas));
  return {values: values.map((_, i) => areas[parts[i]] >= minimum), width, height};
}

function crop({values, width, height}) {
  let left = width, right = -1, top = height, bottom = -1;
  values.forEach((value, i) => {
    if (!value) return;
    const x = i % width, y = (i - x) / width;
    left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
  });
  const newWidth = right - left + 1, newHeight = bottom - top + 1, result = new Uint8Array(newWidth * newHeight);
  for (let y = 0; y < newHeight; y++) {
    result.set(values.subarray((top + y) * width + left, (top + y) * width + right + 1), y * newWidth);
  }
  return {values: result, width: newWidth, height: newHeight};
}

function strokeWidth({values, width, height}) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] ? 1 : 0;
  let outline = 0, area = 0;
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      area += at(x, y);
      outline += (at(x, y) !== at(x - 1, y)) + (at(x, y) !== at(x, y - 1));
    }
  }
  return 2 * area / (outline * Math.PI / 4);
}

function thicken(ink) {
  const {values, width, height} = ink;
  const missing = STROKE_WIDTH * Math.max(width, height) / BOX - strokeWidth(ink);
  const radius = missing / (2 - 2 * STROKE_WIDTH / BOX);
  if (radius < 1) return ink;
  return dilate(pad(ink, Math.floor(radius)), radius);
}

function pad({values, width, height}, margin) {
  const newWidth = width + 2 * margin, result = new Uint8Array(newWidth * (height + 2 * margin));
  for (let y = 0; y < height; y++) {
    result.set(values.subarray(y * width, (y + 1) * width), (y + margin) * newWidth + margin);
  }
  return {values: result, width: newWidth, height: height + 2 * margin};
}

function dilate({values, width, height}, radius) {
  const reach = Math.floor(radius), result = new Uint8Array(values.length);
  values.forEach((value, i) => {
    if (!value) return;
    const x = i % width, y = Math.floor(i / width);
    for (let v = Math.max(y - reach, 0); v <= Math.min(y + reach, height - 1); v++) {
      for (let u = Math.max(x - reach, 0); u <= Math.min(x + reach, width - 1); u++) {
        if ((u - x) ** 2 + (v - y) ** 2 <= radius * radius) result[v * width + u] = 1;
      }
    }
  });
  return {values: result, width, height};
}

function fitBox({values, width, height}) {
  const step = Math.max(width, height) / BOX;
  const [nColumns, nRows] = [width, height].map(n => Math.max(1, Math.ceil(n / step - 1e-9)));
  const rows = overlaps((height - nRows * step) / 2, step, nRows, height);
  const columns = overlaps((width - nColumns * step) / 2, step, nColumns, width);
  const box = resample(values, width, rows, columns).map(share => Math.round(255 * share));
  let sum = 0, sumX = 0, sumY = 0;
  box.forEach((level, i) => {
    sum += level; sumX += level * (i % nColumns); sumY += level * Math.floor(i / nColumns);
  });
  const corner = (centre, n) => Math.min(Math.max(Math.round(CENTRE - centre), 0), SIDE - n);
  const left = corner(sumX / sum, nColumns), top = corner(sumY / sum, nRows), image = new Uint8Array(SIDE * SIDE);
  box.forEach((level, i) => { image[(top + Math.floor(i / nColumns)) * SIDE + left + i % nColumns] = level; });
  return image;
}
