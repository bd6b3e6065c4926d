// Numbers to pixels: decodes the arrays of an answer, enlarges them and colours them. Pure functions, no page.

const VIRIDIS =
  "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f978b" +
  "1f9f8821a68527ad8131b57b3dbc744cc26c5cc8636ece5881d34d95d840aadc32c0df25d5e21aeae51afde725";
const AGAINST = [33, 113, 201];
const FOR = [245, 118, 12];
// Okabe and Ito's colours, told apart by everyone.
const CATEGORIES = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167], [255, 255, 255]];

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

// A colour table of 256 rows from evenly spaced stops, "rrggbb" one after the other.
function table(stops) {
  const channel = (i, c) => parseInt(stops.slice(6 * i + 2 * c, 6 * i + 2 * c + 2), 16);
  const last = stops.length / 6 - 1;
  return Array.from({ length: 256 }, (_, row) => {
    const at = Math.min((row / 255) * last, last - 1e-6);
    const i = Math.floor(at);
    return [0, 1, 2].map((c) => channel(i, c) + (at - i) * (channel(i + 1, c) - channel(i, c)));
  });
}

const SEQUENTIAL = table(VIRIDIS);

function paint(width, height, colourAt) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set(colourAt(i), 4 * i);
  return image;
}

/** A heatmap as a layer, as strong as its numbers: where nothing matters the photo stays as it was. Signed: orange speaks for, blue against. */
export function heatLayer(map, signed, width, height) {
  const values = enlarge(map, width, height);
  const most = map.values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  return paint(width, height, (i) => {
    const strength = Math.min(1, Math.max(0, signed ? Math.abs(values[i] / most) : values[i] / most));
    if (signed) return [...(values[i] < 0 ? AGAINST : FOR), 255 * strength];
    return [...SEQUENTIAL[Math.round(255 * strength)], 255 * strength];
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
