// Numbers to pixels: decodes the arrays of an answer, enlarges them and colours them. Pure functions, no page.

import { CLUSTERS, COLOUR_MAPS } from "./colours.js"; // made by the server from its own tables

const AGAINST = [33, 113, 201];
const FOR = [245, 118, 12];

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const words = (text) => {
  const view = new DataView(bytes(text).buffer);
  return Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true));
};

/** {grid, array: base64 float16} → {rows, columns, values}. */
export function decodeMap({ grid: [rows, columns], array }) {
  return { rows, columns, values: Float32Array.from(words(array), half) };
}

/** {grid, array: base64 uint16} → {rows, columns, values}: the strongest cluster of each patch. */
export function decodeSegmentation({ grid: [rows, columns], array }) {
  return { rows, columns, values: Uint16Array.from(words(array)) };
}

/** Map(number → {rows, columns, values}) → {rows, columns, values}: the number whose map is largest at each patch. */
export function segmentationOf(maps) {
  const [{ rows, columns }] = maps.values();
  const values = Uint16Array.from({ length: rows * columns }, (_, i) =>
    [...maps].reduce((best, [number, map]) => (map.values[i] > best.value ? { number, value: map.values[i] } : best), { number: 0, value: -1 }).number,
  );
  return { rows, columns, values };
}

// For each of `size` positions: four source indices and their Catmull-Rom weights (pixel centres aligned, edges repeated).
function taps(size, from) {
  return Array.from({ length: size }, (_, i) => {
    const centre = ((i + 0.5) * from) / size - 0.5;
    const first = Math.floor(centre);
    const t = centre - first;
    return {
      at: [-1, 0, 1, 2].map((step) => Math.min(from - 1, Math.max(0, first + step))),
      weight: [-t / 2 + t * t - (t * t * t) / 2, 1 - 2.5 * t * t + 1.5 * t * t * t, t / 2 + 2 * t * t - 1.5 * t * t * t, (t * t * t - t * t) / 2],
    };
  });
}

/** Bicubic enlargement to width × height. */
export function enlarge({ rows, columns, values }, width, height) {
  const across = taps(width, columns);
  const wide = new Float32Array(rows * width);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < width; x++) {
      const { at, weight } = across[x];
      wide[y * width + x] = at.reduce((sum, column, i) => sum + weight[i] * values[y * columns + column], 0);
    }
  }
  const out = new Float32Array(width * height);
  taps(height, rows).forEach(({ at, weight }, y) => {
    for (let x = 0; x < width; x++) {
      out[y * width + x] = at.reduce((sum, row, i) => sum + weight[i] * wide[row * width + x], 0);
    }
  });
  return out;
}

// "rrggbb" one after the other → rows of [red, green, blue].
const rows = (text) => text.match(/../g).map((byte) => parseInt(byte, 16)).reduce((all, value, i) => (i % 3 ? all.at(-1).push(value) : all.push([value]), all), []);

const TABLES = new Map(COLOUR_MAPS.map(({ name, table }) => [name, rows(table)]));
const CATEGORIES = rows(CLUSTERS);

/** A CSS gradient of a colour map, from no relevance to the strongest. */
export const ramp = (name) => `linear-gradient(90deg, ${TABLES.get(name).filter((_, i) => i % 51 === 0).map((colour) => `rgb(${colour})`).join(", ")})`;

function paint(width, height, colourAt) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set(colourAt(i), 4 * i);
  return image;
}

/** A heatmap as a layer, as strong as its numbers: where nothing matters the photo stays as it was. Signed: orange speaks for, blue against; else in the colour map `colours`. */
export function heatLayer(map, signed, colours, width, height) {
  const values = enlarge(map, width, height);
  const most = map.values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  return paint(width, height, (i) => {
    const strength = Math.min(1, Math.max(0, signed ? Math.abs(values[i] / most) : values[i] / most));
    if (signed) return [...(values[i] < 0 ? AGAINST : FOR), 255 * strength];
    return [...TABLES.get(colours)[Math.round(255 * strength)], 255 * strength];
  });
}

/** One cluster lit: everything else lies in shade. */
export function spotlight(map, width, height) {
  const values = enlarge(map, width, height);
  const most = map.values.reduce((a, b) => Math.max(a, b), 0) || 1;
  return paint(width, height, (i) => [8, 12, 18, 190 * (1 - Math.min(1, Math.max(0, (1.25 * values[i]) / most)))]);
}

/** Which patches belong together: a colour for each listed cluster, none for the rest. One pixel for each patch. */
export function segmentationLayer({ rows, columns, values }, listed) {
  return paint(columns, rows, (i) => {
    const rank = listed.indexOf(values[i]);
    return rank < 0 ? [0, 0, 0, 90] : [...CATEGORIES[rank % CATEGORIES.length], 190];
  });
}
