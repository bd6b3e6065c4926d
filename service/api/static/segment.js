// A segmented photo on the page: its regions over it, the region under the pointer named, the classes with their areas.

const LONGEST = 1280; // pixels of the canvas, of its longer side at most
const DIM = 0.15; // of the regions that are not pointed at
const LIGHT = [79, 195, 177]; // of a class without a colour of its own, while it is pointed at

const $ = (id) => document.getElementById(id);
const percent = (part) => (part > 0 && part < 0.005 ? "under 1 %" : `${(100 * part).toFixed(0)} %`);
const css = (colour) => `rgb(${colour.join(" ")})`;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** The class of every pixel of a map, read back from its colours; shrunk without mixing classes. */
async function decode({ data, mime, width, height }, palette) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: mime }), { colorSpaceConversion: "none" });
  const shrink = Math.min(1, LONGEST / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * shrink)), Math.max(1, Math.round(height * shrink)));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const ids = new Map(palette.map((colour, id) => [colour.join(), id]));
  const values = Uint8Array.from({ length: canvas.width * canvas.height }, (_, i) => ids.get(pixels.subarray(4 * i, 4 * i + 3).join()));
  return { width: canvas.width, height: canvas.height, values };
}

export class Regions {
  constructor() {
    Object.assign(this, { map: null, lit: null, opacity: 0.6 });
    const box = $("regions");
    box.addEventListener("pointermove", (event) => this.light(this.classAt(event)));
    box.addEventListener("pointerleave", () => this.light(null));
    $("regions-opacity").addEventListener("input", ({ target }) => {
      this.opacity = target.value / 100;
      $("regions-opacity-value").textContent = `${target.value} %`;
      this.draw();
    });
  }

  /** Shows an answer of /segment about `file`; model: its row of /models. */
  async show(file, answer, { palette }) {
    const map = await decode(answer.map, palette);
    const photo = $("regions-photo");
    const old = photo.src;
    photo.src = URL.createObjectURL(file);
    if (old) URL.revokeObjectURL(old);
    await photo.decode();
    Object.assign(this, { map, palette, segments: answer.segments, lit: null });
    Object.assign($("regions-map"), { width: map.width, height: map.height });
    $("regions").style.setProperty("--ratio", map.width / map.height);
    const names = answer.segments.map(({ label, area }) => `${label} ${percent(area)}`).join(", ");
    photo.alt = `The photo: ${names}`;
    const main = answer.segments.find(({ class_id: id }) => palette[id].some(Boolean)) ?? answer.segments[0];
    $("regions-answer").textContent = main ? main.label : "nothing";
    document.title = `${$("regions-answer").textContent} · PaCa`;
    $("regions-model").textContent = `${answer.model} · version ${answer.model_version}`;
    $("regions-list").replaceChildren(...answer.segments.map((segment) => this.row(segment)));
    const warnings = answer.warnings ?? [];
    $("regions-warnings").hidden = warnings.length === 0;
    $("regions-warnings").replaceChildren(...warnings.map((textContent) => element("li", { textContent })));
    this.light(null);
    return names;
  }

  row({ label, class_id: id, area, score }) {
    const swatch = element("span", { className: "swatch", ariaHidden: "true" });
    swatch.style.background = this.palette[id].some(Boolean) ? css(this.palette[id]) : "none";
    const fill = element("span");
    fill.style.width = `${100 * area}%`;
    const button = element(
      "button",
      { type: "button", title: `mean probability ${(100 * score).toFixed(0)} %` },
      element("span", { className: "name" }, swatch, label),
      element("span", { className: "value", textContent: percent(area) }),
      element("span", { className: "bar", ariaHidden: "true" }, fill),
    );
    button.dataset.class = id;
    for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => this.light(id));
    for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => this.light(null));
    return element("li", {}, button);
  }

  classAt({ clientX, clientY }) {
    const box = $("regions-map").getBoundingClientRect();
    const x = Math.floor(((clientX - box.left) / box.width) * this.map.width);
    const y = Math.floor(((clientY - box.top) / box.height) * this.map.height);
    const inside = x >= 0 && y >= 0 && x < this.map.width && y < this.map.height;
    return inside ? this.map.values[y * this.map.width + x] : null;
  }

  /** Lights a class, or none, on the photo and in the list. */
  light(id) {
    this.lit = id;
    for (const button of $("regions-list").querySelectorAll("button")) button.classList.toggle("lit", Number(button.dataset.class) === id && id !== null);
    const segment = this.segments.find(({ class_id: own }) => own === id);
    $("regions-tag").hidden = !segment;
    if (segment) $("regions-tag").textContent = `${segment.label} · ${percent(segment.area)} of the picture`;
    this.draw();
  }

  layer() {
    const { width, height, values } = this.map;
    const image = new ImageData(width, height);
    const colours = this.palette.map((colour, id) => {
      const own = colour.some(Boolean);
      if (this.lit === null) return [...colour, own ? 255 : 0];
      return id === this.lit ? [...(own ? colour : LIGHT), 255] : [...colour, own ? 255 * DIM : 0];
    });
    values.forEach((id, i) => image.data.set(colours[id], 4 * i));
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  draw() {
    const context = $("regions-map").getContext("2d");
    context.clearRect(0, 0, this.map.width, this.map.height);
    context.globalAlpha = this.opacity;
    context.drawImage(this.layer(), 0, 0);
  }

  /** The photo with its regions as they are seen here, a PNG. */
  save() {
    const whole = new OffscreenCanvas(this.map.width, this.map.height);
    const context = whole.getContext("2d");
    context.drawImage($("regions-photo"), 0, 0, whole.width, whole.height);
    context.drawImage($("regions-map"), 0, 0);
    return whole.convertToBlob({ type: "image/png" });
  }
}
