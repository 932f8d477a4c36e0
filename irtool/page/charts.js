// Small charts: bars of channels, lines over epochs, bars of sensitivity.

/** A row a layer: how many channels are left, and why if all are. */
function channelBars(plan) {
  const rows = plan.layers.map((layer) => {
    const kept = layer.total - layer.removed.length;
    const words = `${layer.name}: ${kept} of ${layer.total} channels kept${layer.reason ? `, ${layer.reason}` : ""}`;
    return h("li", {class: layer.reason ? "whole" : null, title: words},
      h("span", {class: "name"}, layer.name),
      h("span", {class: "track", role: "img", "aria-label": words}, h("span", {class: "total"}, // each bar is the whole of its layer: on one scale narrow layers cannot be seen
        h("span", {class: "kept", style: `width:${(100 * kept) / Math.max(layer.total, 1)}%`}))),
      h("span", {class: "num"}, `${kept} of ${layer.total}`));
  });
  return h("ul", {class: "bars", tabindex: 0, "aria-label": "Channels kept in each layer"}, rows);
}

const PLOT = {width: window.innerWidth < 640 ? 340 : 560, height: 240, left: 52, right: 14, top: 14, bottom: 44};

/** Round steps over a range. */
function ticks(low, high, wanted = 5) {
  const raw = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(10)));
  return found;
}

/**
 * Lines over a common x axis. series: [{name, points: [[x, y]], dashed}]. `say` writes a value.
 * The numbers stand in a table beside each chart as well, so that the picture is not the only way to them.
 */
function lineChart(title, series, axis, say) {
  const points = series.flatMap((one) => one.points);
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const room = (Math.max(...ys) - Math.min(...ys)) * 0.06 || Math.abs(ys[0]) * 0.05 || 1;
  const [y0, y1] = [Math.min(...ys) - room, Math.max(...ys) + room];
  const px = (x) => PLOT.left + ((x - x0) / (x1 - x0 || 1)) * (PLOT.width - PLOT.left - PLOT.right);
  const py = (y) => PLOT.height - PLOT.bottom - ((y - y0) / (y1 - y0)) * (PLOT.height - PLOT.top - PLOT.bottom);
  const grid = ticks(y0, y1, 4).map((value) => [s("line", {class: "grid", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: py(value), y2: py(value)}),
    s("text", {class: "tick", x: PLOT.left - 8, y: py(value) + 4, "text-anchor": "end"}, say(value))]);
  const below = ticks(x0, x1, 6).filter((value) => x1 - x0 < 1 || Number.isInteger(value)).map((value) => s("text", {class: "tick", x: px(value), y: PLOT.height - 25, "text-anchor": "middle"}, String(value)));
  const lines = series.map((one, index) => s("polyline", {class: `line s${index}${one.dashed ? " dashed" : ""}`, points: one.points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ")}));
  const dots = series.flatMap((one, index) => (one.points.length < 2 ? one.points.map(([x, y]) => s("circle", {class: `point s${index}`, cx: px(x), cy: py(y), r: 3})) : []));
  const rule = s("line", {class: "rule", y1: PLOT.top, y2: PLOT.height - PLOT.bottom, visibility: "hidden"});
  const readout = h("p", {class: "readout", "aria-live": "off"}, "\u00a0");
  const picture = s("svg", {viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": `${title}: ${series.map((one) => `${one.name} ends at ${say(one.points[one.points.length - 1][1])}`).join(", ")}`},
    grid, below, s("text", {class: "tick", x: PLOT.width - PLOT.right, y: PLOT.height - 6, "text-anchor": "end"}, axis), rule, lines, dots);
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const x = x0 + (((event.clientX - frame.left) / frame.width) * PLOT.width - PLOT.left) / (PLOT.width - PLOT.left - PLOT.right) * (x1 - x0);
    const near = [...new Set(xs)].reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best));
    rule.setAttribute("x1", px(near));
    rule.setAttribute("x2", px(near));
    rule.setAttribute("visibility", "visible");
    const values = series.map((one) => [one.name, one.points.find((point) => point[0] === near)?.[1]]).filter(([, value]) => value !== undefined);
    readout.textContent = `${axis} ${near}: ${values.map(([name, value]) => `${name} ${say(value)}`).join(", ")}`;
  });
  picture.addEventListener("pointerleave", () => { rule.setAttribute("visibility", "hidden"); readout.textContent = "\u00a0"; });
  const key = h("p", {class: "key"}, series.map((one, index) => h("span", null, h("i", {class: `s${index}${one.dashed ? " dashed" : ""}`}), one.name)));
  return h("figure", {class: "chart"}, h("figcaption", null, title), key, picture, readout);
}

/** Sensitivity: one value a layer as bars, or several as lines. */
function sensitivityChart(found) {
  const say = found.metric === "accuracy" ? (value) => fmt.percent(value, 1) : (value) => Number(value).toPrecision(3);
  const curved = found.layers.filter((layer) => layer.points?.length);
  if (curved.length) {
    const worst = (layer) => (found.higher_is_better === false ? -1 : 1) * layer.points[layer.points.length - 1][1];
    const shown = [...curved].sort((a, b) => worst(a) - worst(b)).slice(0, 6);
    const note = curved.length > shown.length ? h("p", {class: "muted"}, `The ${shown.length} most sensitive of ${curved.length} layers.`) : null;
    return [h("div", {class: "charts"}, lineChart(found.what, shown.map((layer) => ({name: layer.name, points: layer.points})), found.x || "", say), h("span")), note];
  }
  const values = found.layers.map((layer) => layer.value);
  const base = found.baseline ?? Math.max(...values);
  const most = Math.max(...values.map((value) => Math.abs(value - base)), 1e-12);
  const rows = [...found.layers].sort((a, b) => Math.abs(b.value - base) - Math.abs(a.value - base)).map((layer) => h("li", null, h("span", {class: "name"}, layer.name),
    h("span", {class: "track", role: "img", "aria-label": `${layer.name}: ${say(layer.value)}`}, h("span", {class: "kept", style: `width:${(100 * Math.abs(layer.value - base)) / most}%`})), h("span", {class: "num"}, say(layer.value))));
  return [h("p", {class: "muted"}, `${found.what}. Bars: distance from the baseline, ${say(base)}.`), h("ul", {class: "bars", tabindex: 0, "aria-label": found.what}, rows)];
}
