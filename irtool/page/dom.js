// Elements and numbers. All text goes in as text nodes: what a model calls its layers is never read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", child). */
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element, likewise. */
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const grouped = new Intl.NumberFormat("en", {maximumFractionDigits: 0});

/** Numbers as people read them; null gives a dash. */
const fmt = {
  count: (n) => (n === null || n === undefined ? "–" : grouped.format(n)),
  short(n) {
    if (n === null || n === undefined) return "–";
    const unit = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([size]) => Math.abs(n) >= size);
    return unit ? `${(n / unit[0]).toPrecision(3)}${unit[1]}` : grouped.format(n);
  },
  bytes(n) {
    if (n === null || n === undefined) return "–";
    const unit = [[1e9, " GB"], [1e6, " MB"], [1e3, " kB"]].find(([size]) => n >= size);
    return unit ? `${(n / unit[0]).toPrecision(3)}${unit[1]}` : `${n} B`;
  },
  percent: (share, digits = 1) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`),
  /** Three digits, so that two times tell their ratio. */
  ms: (n) => (n === null || n === undefined ? "–" : `${n >= 1000 ? grouped.format(n) : n.toPrecision(3)} ms`),
  /** 5.3×10⁻¹⁶. */
  small(n) {
    if (n === null || n === undefined || typeof n !== "number") return n === 0 || n ? String(n) : "–";
    if (n === 0) return "0";
    const [mantissa, exponent] = n.toExponential(1).split("e");
    const raised = [...exponent.replace("+", "")].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)])).join("");
    return `${mantissa === "1.0" ? "" : `${mantissa}×`}10${raised}`;
  },
  shape: (sizes) => (sizes ? sizes.join("×") || "scalar" : "–"),
  /** 63 %: what is left of the original, as the terminal has it. */
  share: (before, after) => `${((100 * after) / before).toFixed(0)} %`,
  /** −93 %, with a true minus. */
  change(before, after) {
    if (!before || after === null || after === undefined) return "";
    const share = 100 * (after / before - 1);
    return `${share < 0 ? "−" : "+"}${Math.abs(share).toFixed(Math.abs(share) < 10 ? 1 : 0)} %`;
  },
  value(value) {
    if (value === null || value === undefined) return "–";
    if (Array.isArray(value)) return `[${value.map(fmt.value).join(", ")}]`;
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  },
};

/** A table in a box that scrolls by itself, so that the page never does sideways. */
function table(caption, head, rows, options = {}) {
  const numeric = options.numeric || [];
  const cell = (tag, value, column) => h(tag, {class: numeric.includes(column) ? "num" : null, scope: tag === "th" ? "col" : null}, value);
  const body = rows.map((row) => h("tr", null, row.map((value, column) => (column === 0
    ? h("th", {scope: "row"}, value) : cell("td", value, column)))));
  return h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption},
    h("table", null, h("caption", {class: "unseen"}, caption), h("thead", null, h("tr", null, head.map((value, column) => cell("th", value, column)))),
      h("tbody", null, body)));
}

function debounce(delay, action) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), delay);
  };
}
