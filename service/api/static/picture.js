// The photo on the page with its layers: a heatmap under a slider, and one cluster lit while a patch is pointed at.

import { groupsOf } from "./api.js";
import { COLOUR_MAPS } from "./colours.js";
import { decodeMap, decodeSegmentation, heatLayer, segmentationLayer, segmentationOf, spotlight } from "./heatmap.js";

const CANVAS = 1280; // long side of the canvas at most, in its own pixels
const LAYER = 320; // long side of a layer: maps are smooth, the browser enlarges them

function asCanvas(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

const same = (a, b) => a?.row === b?.row && a?.column === b?.column;

export class Picture {
  /** onPoint(cluster | null, patch | null): the patch under the pointer or the arrow keys has changed. */
  constructor(element, onPoint) {
    this.element = element;
    this.photo = element.querySelector("img");
    this.canvas = element.querySelector("canvas");
    this.onPoint = onPoint;
    this.opacity = 0.7;
    this.colours = COLOUR_MAPS[0].name;
    this.clear();
    element.addEventListener("pointermove", (event) => this.point(this.patchAt(event)));
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.point(null));
    element.addEventListener("blur", () => this.point(null));
    element.addEventListener("keydown", (event) => this.step(event));
  }

  clear() {
    Object.assign(this, { heat: null, paintHeat: null, segmentation: null, maps: new Map(), lights: new Map(), lit: null, patch: null });
  }

  /** Shows `url`; rejects where the browser cannot draw it. */
  async setPhoto(url, description) {
    this.photo.src = url;
    this.photo.alt = description;
    await this.photo.decode();
    const { naturalWidth: width, naturalHeight: height } = this.photo;
    const shrink = Math.min(1, CANVAS / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * shrink));
    this.canvas.height = Math.max(1, Math.round(height * shrink));
    this.element.style.setProperty("--ratio", width / height);
  }

  /** Takes the arrays of one explanation; its window says where on the photo they lie. */
  setExplanation(explanation, image) {
    const { heatmap, fading, window: [x0, y0, x1, y1] } = explanation;
    const { kind, items: clusters } = groupsOf(explanation);
    this.clear();
    this.strength = fading?.strength ?? 1;
    const scale = this.canvas.width / image.width;
    this.frame = [x0, y0, x1 - x0, y1 - y0].map((value) => Math.round(value * scale));
    const size = this.layerSize();
    for (const { cluster, heatmap: map } of clusters) if (map) this.maps.set(cluster, decodeMap(map));
    if (kind === "part") this.segmentation = segmentationOf(this.maps);
    else if (explanation.segmentation) this.segmentation = decodeSegmentation(explanation.segmentation);
    if (heatmap) {
      this.paintHeat = () => asCanvas(heatLayer(decodeMap(heatmap), heatmap.signed, this.colours, ...size));
      this.heat = this.paintHeat();
    } else if (this.segmentation) {
      this.heat = asCanvas(segmentationLayer(this.segmentation, clusters.map(({ cluster }) => cluster)));
    }
    this.draw();
  }

  layerSize() {
    const sides = this.frame.slice(2);
    const shrink = LAYER / Math.max(...sides);
    return sides.map((side) => Math.max(1, Math.round(side * shrink)));
  }

  setOpacity(value) {
    this.opacity = value;
    this.draw();
  }

  /** Shows the heatmap in another colour map. */
  setColours(name) {
    this.colours = name;
    if (this.paintHeat) this.heat = this.paintHeat();
    this.draw();
  }

  /** Lights a cluster, or none; `patch` is the one pointed at, if any. */
  light(cluster, patch = null) {
    this.lit = cluster;
    this.patch = patch;
    this.draw();
  }

  patchAt(event) {
    if (!this.segmentation) return null;
    const box = this.canvas.getBoundingClientRect();
    const [left, top, width, height] = this.frame;
    const x = ((event.clientX - box.left) / box.width) * this.canvas.width - left;
    const y = ((event.clientY - box.top) / box.height) * this.canvas.height - top;
    if (x < 0 || y < 0 || x >= width || y >= height) return null;
    return { row: Math.floor((y / height) * this.segmentation.rows), column: Math.floor((x / width) * this.segmentation.columns) };
  }

  // A finger cannot hover: what it touches stays lit until it is touched again.
  press(event) {
    const patch = this.patchAt(event);
    this.point(event.pointerType === "touch" && same(patch, this.patch) ? null : patch);
  }

  step(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") this.point(null);
    if (!move || !this.segmentation) return;
    event.preventDefault();
    const { rows, columns } = this.segmentation;
    const { row, column } = this.patch ?? { row: Math.floor(rows / 2) - move[0], column: Math.floor(columns / 2) - move[1] };
    const within = (value, size) => Math.min(size - 1, Math.max(0, value));
    this.point({ row: within(row + move[0], rows), column: within(column + move[1], columns) });
  }

  point(patch) {
    if (same(patch, this.patch)) return;
    const cluster = patch && this.segmentation.values[patch.row * this.segmentation.columns + patch.column];
    this.light(cluster, patch);
    this.onPoint(cluster, patch);
  }

  // The assignment where the answer carries it, else the patches where this cluster is the strongest.
  lightOf(cluster) {
    if (!this.lights.has(cluster)) {
      const { rows, columns, values } = this.segmentation ?? {};
      const map = this.maps.get(cluster) ?? { rows, columns, values: Float32Array.from(values, (value) => (value === cluster ? 1 : 0)) };
      this.lights.set(cluster, asCanvas(spotlight(map, ...this.layerSize())));
    }
    return this.lights.get(cluster);
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.lit !== null && (this.segmentation || this.maps.has(this.lit))) {
      context.globalAlpha = 1;
      context.drawImage(this.lightOf(this.lit), ...this.frame);
      if (this.patch) this.outline(context);
    } else if (this.heat) {
      context.globalAlpha = this.opacity * this.strength;
      context.imageSmoothingEnabled = this.heat.width > 64;
      context.drawImage(this.heat, ...this.frame);
    }
  }

  /** The photo as it is seen here, with a caption in its corner: a PNG to keep or to send. */
  save(caption) {
    const whole = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    const context = whole.getContext("2d");
    context.drawImage(this.photo, 0, 0, whole.width, whole.height);
    context.drawImage(this.canvas, 0, 0);
    const size = Math.max(13, Math.round(whole.width / 36));
    context.font = `600 ${size}px system-ui, sans-serif`;
    const room = Math.min(context.measureText(caption).width, whole.width - 3 * size);
    context.fillStyle = "rgb(10 16 18 / 82%)";
    context.beginPath();
    context.roundRect(size / 2, whole.height - 2.25 * size, room + 1.5 * size, 1.75 * size, size);
    context.fill();
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(caption, 1.25 * size, whole.height - 1.35 * size, room);
    return whole.convertToBlob({ type: "image/png" });
  }

  outline(context) {
    const [left, top, width, height] = this.frame;
    const { rows, columns } = this.segmentation;
    const [w, h] = [width / columns, height / rows];
    context.lineWidth = Math.max(1.5, this.canvas.width / 320);
    context.strokeStyle = "#fff";
    context.strokeRect(left + this.patch.column * w, top + this.patch.row * h, w, h);
  }
}
