// The network: its layers in plain JavaScript on typed arrays. Images are stored channel by channel, row by row.
"use strict";

// The weights: base64 of 16-bit floats, layer by layer, each with its weights before its biases.
function decodeWeights(text) {
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer), weights = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const sign = halves[i] & 0x8000 ? -1 : 1, exponent = (halves[i] >> 10) & 31, fraction = halves[i] & 1023;
    weights[i] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }
  return weights;
}

// layers: [{kind, ...}]. Returns a function from an image (784 gray levels) to {probabilities, maps}: `maps` are the
// outputs of the layers that are images, with the number of the layer.
function makeNetwork(layers, weights) {
  let position = 0;
  const take = count => weights.subarray(position, position += count);
  const steps = layers.map(layer => makeLayer(layer, take));
  if (position !== weights.length) throw new Error("the weights do not fit the layers");
  return image => {
    let values = {data: Float32Array.from(image, level => level / 255), channels: 1, height: 28, width: 28};
    const maps = [];
    steps.forEach((step, number) => {
      values = step(values);
      if (values.height * values.width > 1) maps.push({number, kind: layers[number].kind, ...values});
    });
    return {probabilities: softmax(values.data), maps};
  };
}

function makeLayer(layer, take) {
  switch (layer.kind) {
    case "conv": {
      const size = layer.inputs * layer.kernel ** 2, weights = take(layer.outputs * size), bias = take(layer.outputs);
      return values => convolve(values, layer, weights, bias);
    }
    case "dense": {
      const weights = take(layer.outputs * layer.inputs), bias = take(layer.outputs);
      return values => asVector(multiply(weights, bias, values.data, 1));
    }
    case "scale": {
      const factors = take(layer.channels), offsets = take(layer.channels);
      return values => {
        const size = values.height * values.width;
        const scaled = (value, i) => value * factors[Math.floor(i / size)] + offsets[Math.floor(i / size)];
        return {...values, data: values.data.map(scaled)};
      };
    }
    case "squeeze_excite": {
      const first = [take(layer.middle * layer.channels), take(layer.middle)];
      const second = [take(layer.channels * layer.middle), take(layer.channels)];
      return values => {
        const size = values.height * values.width, means = pool(values, values.height, values.width, mean).data;
        const middle = multiply(...first, means, 1).map(value => Math.max(value, 0));
        const factors = multiply(...second, middle, 1).map(value => 1 / (1 + Math.exp(-value)));
        return {...values, data: values.data.map((value, i) => value * factors[Math.floor(i / size)])};
      };
    }
    case "max_pool": return values => pool(values, layer.size, layer.size, maximum);
    case "avg_pool": return values => pool(values, layer.size, layer.size, mean);
    case "global_pool": return values => pool(values, values.height, values.width, mean);
    case "relu": return values => ({...values, data: values.data.map(value => Math.max(value, 0))});
    case "tanh": return values => ({...values, data: values.data.map(Math.tanh)});
    case "flatten": return values => asVector(values.data);
  }
  throw new Error(`unknown layer ${layer.kind}`);
}

const asVector = data => ({data, channels: data.length, height: 1, width: 1});
const maximum = values => values.reduce((a, b) => Math.max(a, b));
const mean = values => values.reduce((a, b) => a + b) / values.length;

function pool({data, channels, height, width}, rows, columns, combine) {
  const newHeight = Math.floor(height / rows), newWidth = Math.floor(width / columns);
  const result = new Float32Array(channels * newHeight * newWidth), window = new Float32Array(rows * columns);
  let next = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < newHeight; y++) {
      for (let x = 0; x < newWidth; x++) {
        for (let i = 0; i < window.length; i++) {
          const row = channel * height + y * rows + Math.floor(i / columns);
          window[i] = data[row * width + x * columns + i % columns];
        }
        result[next++] = combine(window);
      }
    }
  }
  return {data: result, channels, height: newHeight, width: newWidth};
}

function convolve({data, channels, height, width}, {kernel, stride, pad, outputs}, weights, bias) {
  const newHeight = Math.floor((height + 2 * pad - kernel) / stride) + 1;
  const newWidth = Math.floor((width + 2 * pad - kernel) / stride) + 1;
  const patches = new Float32Array(newHeight * newWidth * channels * kernel * kernel);
  let next = 0;
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      for (let channel = 0; channel < channels; channel++) {
        for (let i = 0; i < kernel; i++) {
          const row = y * stride - pad + i, start = (channel * height + row) * width;
          for (let j = 0; j < kernel; j++, next++) {
            const column = x * stride - pad + j;
            if (row >= 0 && row < height && column >= 0 && column < width) patches[next] = data[start + column];
          }
        }
      }
    }
  }
  const result = multiply(weights, bias, patches, newHeight * newWidth);
  return {data: result, channels: outputs, height: newHeight, width: newWidth};
}

// The product of a matrix, row by row, with each of n vectors, and the biases. Four rows at a time, so that each value
// of a vector is read once for them: twice as fast.
function multiply(weights, bias, vectors, n) {
  const rows = bias.length, size = vectors.length / n, result = new Float32Array(rows * n);
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const start = row * size;
    for (let vector = 0; vector < n; vector++) {
      const from = vector * size;
      let a = bias[row], b = bias[row + 1], c = bias[row + 2], d = bias[row + 3];
      for (let i = 0; i < size; i++) {
        const value = vectors[from + i], at = start + i;
        a += weights[at] * value;
        b += weights[at + size] * value;
        c += weights[at + 2 * size] * value;
        d += weights[at + 3 * size] * value;
      }
      result[row * n + vector] = a;
      result[(row + 1) * n + vector] = b;
      result[(row + 2) * n + vector] = c;
      result[(row + 3) * n + vector] = d;
    }
  }
  for (; row < rows; row++) {
    for (let vector = 0; vector < n; vector++) {
      let sum = bias[row];
      for (let i = 0; i < size; i++) sum += weights[row * size + i] * vectors[vector * size + i];
      result[row * n + vector] = sum;
    }
  }
  return result;
}

function softmax(logits) {
  const largest = maximum(logits), powers = Array.from(logits, logit => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

// The same as `calibrate` in pipeline/metrics/calibration.py.
function calibrate(probabilities, temperature) {
  return softmax(probabilities.map(probability => Math.log(Math.max(probability, 1e-12)) / temperature));
}
