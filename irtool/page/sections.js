// The parts of a page, each from the data it needs. A part without data is left out.

function section(id, title, lead, ...content) {
  return h("section", {id, "aria-labelledby": `${id}-title`}, h("h2", {id: `${id}-title`}, title), lead ? h("p", {class: "lead"}, lead) : null, content);
}

/** The few numbers that people come for. */
function tiles(report) {
  const {before, after} = report;
  const tile = (label, old, now, change, good) => h("div", {class: "tile"}, h("dt", null, label), h("dd", null, h("span", {class: "now"}, now),
    h("span", {class: "old"}, `from ${old}`), change ? h("span", {class: `delta ${good === null ? "" : good ? "good" : "bad"}`}, change) : null));
  const found = [];
  if (after.accuracy !== null && after.accuracy !== undefined) {
    const points = 100 * (after.accuracy - before.accuracy);
    const words = `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(2)} points`;
    found.push(tile("Accuracy", fmt.percent(before.accuracy, 2), fmt.percent(after.accuracy, 2), words, Math.abs(points) < 0.005 ? null : points > 0));
  }
  found.push(tile("Parameters", fmt.short(before.params), fmt.short(after.params), fmt.change(before.params, after.params), after.params <= before.params));
  found.push(tile("MACs", fmt.short(before.macs), fmt.short(after.macs), fmt.change(before.macs, after.macs), after.macs <= before.macs));
  if (after.weight_bytes !== undefined && !after.file_bytes) found.push(tile("Weights", fmt.bytes(before.weight_bytes), fmt.bytes(after.weight_bytes), fmt.change(before.weight_bytes, after.weight_bytes), after.weight_bytes <= before.weight_bytes));
  const size = after.file_bytes?.onnx;
  if (size && before.file_bytes?.onnx) found.push(tile("ONNX file", fmt.bytes(before.file_bytes.onnx), fmt.bytes(size), fmt.change(before.file_bytes.onnx, size), size <= before.file_bytes.onnx));
  const both = Object.keys(after.latency_ms || {}).filter((name) => before.latency_ms?.[name] !== undefined);
  const engine = both.find((name) => name !== "torch") ?? both[0];
  if (engine) {
    const [old, now] = [before, after].map((one) => one.latency_ms[engine]);
    found.push(tile(`Latency, ${engine}`, fmt.ms(old), fmt.ms(now), `${fmt.share(old, now)} of the time`, now <= old));
  }
  return h("dl", {class: "tiles"}, found);
}

/** The totals of two graphs, as a run's. */
function diffTiles(totals) {
  const side = (index) => Object.fromEntries(Object.entries(totals).map(([name, pair]) => [name, pair[index]]));
  return tiles({before: side(0), after: side(1)});
}

function graphs(data) {
  if (!data.picture) return null;
  const single = data.kind === "view";
  const explorer = new Explorer(data.picture, data.names);
  if (single) explorer.element.classList.add("single");
  window.irtoolPage = {explorer}; // a handle for tests and for the console
  return h("section", {id: "graph", class: "wide", "aria-labelledby": "graph-title"}, h("h2", {id: "graph-title"}, single ? "The graph" : "The graph, before and after"),
    single ? null : h("p", {class: "lead"}, "A node that both have stands at the same place in both."), explorer.element);
}

function channels(data) {
  if (!data.plan?.layers?.length) return null;
  const [total, kept] = data.report.channels;
  const alone = new Map();
  for (const layer of data.plan.layers) if (layer.reason) alone.set(layer.reason, [...(alone.get(layer.reason) || []), layer.name]);
  const reasons = alone.size ? [h("h3", {id: "alone"}, "Layers left alone"), table("Layers left alone, and why", ["Layers", "Why"],
    [...alone].map(([reason, names]) => [`${names.slice(0, 4).join(", ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""}`, reason]))] : [];
  return section("channels", "Channels kept in each layer", `${fmt.count(kept)} of ${fmt.count(total)} channels are left. Each bar is the whole of its layer.`, channelBars(data.plan), reasons);
}

const fileLabel = (kind) => kind === "model" ? "Model file" : `${kind.toUpperCase()} file`;

function measured(data) {
  const {before, after, truth} = data.report;
  const row = (label, read, say) => [label, say(read(before)), say(read(after)), fmt.change(read(before), read(after))];
  const rows = [];
  if (before.accuracy !== null && before.accuracy !== undefined) {
    rows.push([`${truth === "answers" ? "Agreement with the original" : "Accuracy"}, ${fmt.count(before.images)} images`, fmt.percent(before.accuracy, 2), fmt.percent(after.accuracy, 2), `${(100 * (after.accuracy - before.accuracy)).toFixed(2).replace("-", "−")} points`]);
  }
  rows.push(row("Parameters", (one) => one.params, fmt.count), row("MACs, one sample", (one) => one.macs, fmt.count), row("Weights, bytes", (one) => one.weight_bytes, fmt.count));
  for (const kind of new Set([...Object.keys(after.file_bytes || {}), ...Object.keys(before.file_bytes || {})])) {
    rows.push(row(`${fileLabel(kind)}, bytes`, (one) => one.file_bytes?.[kind], fmt.count));
  }
  for (const engine of Object.keys(after.latency_ms || {})) {
    const [old, now] = [before, after].map((one) => one.latency_ms?.[engine]);
    rows.push([`Latency, ${engine}`, fmt.ms(old), fmt.ms(now), old === undefined ? "" : `${fmt.share(old, now)} of the time`]);
  }
  const note = after.runs ? `Latency: median of at least ${after.runs} runs of the original at batch 1 on ${after.threads} thread${after.threads === 1 ? "" : "s"}; times that the median ratio of paired runs.` : null;
  return section("measured", "What it costs, before and after", null, table("Before and after", ["", "Before", "After", "Change"], rows, {numeric: [1, 2, 3]}), note ? h("p", {class: "muted"}, note) : null);
}

/** How far an error is below what is allowed, as a bar on a logarithmic scale. */
function margin(link) {
  const floor = 1e-17;
  const place = (value) => Math.max(2, Math.min(100, 100 * (Math.log10(Math.max(value, floor)) / -Math.log10(floor) + 1)));
  return h("span", {class: `margin ${link.ok ? "" : "bad"}`, role: "img", "aria-label": `error ${fmt.small(link.relative)}, allowed ${fmt.small(link.tolerance)}`},
    h("i", {style: `width:${place(link.relative)}%`}), h("b", {style: `left:${place(link.tolerance)}%`}));
}

function chain(data) {
  const links = data.report.chain;
  if (!links?.length) return null;
  const rows = links.map((link) => [link.name, h("span", {class: link.verdict.toLowerCase()}, link.verdict), link.arithmetic,
    fmt.small(link.relative), fmt.small(link.tolerance), margin(link)]);
  const notes = links.flatMap((link) => [link.note ? `${link.name}: ${link.note}` : "", link.diverges ? `${link.name}: first diverging node ${link.diverges}` : ""]).filter(Boolean);
  const said = links.some((link) => link.verdict === "BROKEN") ? "A step does not compute what the step before it computed."
    : links.some((link) => link.verdict === "unchecked") ? "A step could not be checked in numbers; the others compute what the step before them computed."
      : "Each step computes what the step before it computed, within the error that is allowed.";
  return section("chain", "The chain of equality", said,
    table("The chain of equality", ["Step", "", "Computed in", "Relative error", "Allowed", "On a log scale"], rows, {numeric: [3, 4]}), notes.map((note) => h("p", {class: "muted"}, note)));
}

function curves(data) {
  const charts = [];
  for (const run of data.curves || []) {
    const column = (name) => run.rows.map((row) => [row.epoch, row[name]]).filter(([, value]) => typeof value === "number");
    const pair = (what) => [["test", `test_${what}`], ["training", `train_${what}`]].map(([name, key]) => ({name, points: column(key), dashed: name === "training"})).filter((one) => one.points.length);
    const heading = run.name ? `, ${run.name}` : "";
    if (pair("accuracy").length) charts.push(lineChart(`Accuracy${heading}`, pair("accuracy"), "epoch", (value) => fmt.percent(value, 1)));
    if (pair("loss").length) charts.push(lineChart(`Loss${heading}`, pair("loss"), "epoch", (value) => Number(value).toPrecision(3)));
    charts.push(h("details", null, h("summary", null, `All ${run.rows.length} epochs as a table`), table(`Epochs${heading}`, Object.keys(run.rows[0]), run.rows.map((row) => Object.values(row).map((value) => (typeof value === "number" ? Number(value.toPrecision(5)) : fmt.value(value)))), {numeric: Object.keys(run.rows[0]).map((_, i) => i)})));
  }
  return charts.length ? section("training", "Training", null, h("div", {class: "charts"}, charts)) : null;
}

function sensitivity(data) {
  return data.sensitivity?.layers?.length ? section("sensitivity", "Sensitivity of layers", null, sensitivityChart(data.sensitivity)) : null;
}

function origin(data) {
  const {report} = data;
  const list = (values) => h("dl", {class: "facts"}, Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => [h("dt", null, name.replaceAll("_", " ")), h("dd", null, fmt.value(value))]));
  return section("origin", "How it was made", null, report.notes?.length ? h("ul", null, report.notes.map((note) => h("li", null, note))) : null,
    h("div", {class: "columns"}, h("div", null, h("h3", null, "Options"), list(report.options)), h("div", null, h("h3", null, "Source"), list(report.source)),
      h("div", null, h("h3", null, "Files"), list(report.files), h("h3", null, "Made with"), list(report.made_with))));
}

/** What a diff found, as a table. */
function differences(data) {
  const {diff} = data;
  const name = (node) => `${node.op} ${node.location}`;
  const pair = (one) => `${one.before.map(name).join(" + ") || "nothing"} → ${one.after.map(name).join(" + ") || "nothing"}`;
  const rows = [
    ...diff.removed.map((node) => ["removed", name(node), fmt.shape(node.shape)]), ...diff.added.map((node) => ["added", name(node), fmt.shape(node.shape)]),
    ...diff.replaced.map((one) => ["replaced", pair(one), ""]), ...diff.attributes.map((one) => ["attribute", name(one.node), `${one.what}: ${fmt.value(one.before)} → ${fmt.value(one.after)}`]),
    ...diff.wiring.map((one) => ["operand", name(one.node), `${one.what}: from ${one.before} → from ${one.after}`]),
    ...diff.channels.map((one) => ["channels", name(one.node), [["in", one.inputs], ["out", one.outputs]].filter(([, [a, b]]) => a !== b).map(([side, [a, b]]) => `${side} ${a} → ${b}`).join(", ")]),
    ...diff.shapes.map((one) => ["shape", name(one.node), `${one.what}: ${fmt.value(one.before)} → ${fmt.value(one.after)}`]),
    ...diff.parameters.map((one) => ["numbers", one.name, `norm ${fmt.small(one.norm)}, at most ${fmt.small(one.max_abs)}`]), ...diff.lowered.map((one) => ["lowering", pair(one), "computes the same"]),
  ];
  const shown = rows.slice(0, 400);
  const lead = diff.same ? "No difference." : `${fmt.count(rows.length - diff.lowered.length)} differences.`;
  return section("differences", "Differences", lead, shown.length ? table("Differences", ["Kind", "Where", "What"], shown) : null, rows.length > shown.length ? h("p", {class: "muted"}, `The first ${shown.length} of ${fmt.count(rows.length)}; --json has all.`) : null);
}

/** What one model costs, and its layers with their channels. */
function model(data) {
  const {cost, layers} = data.model;
  const facts = [["Parameters", fmt.count(cost.params)], ["MACs, one sample", fmt.count(cost.macs)], ["Weights, bytes", fmt.count(cost.weight_bytes)], ["Nodes", fmt.count(data.model.nodes)], ["Read by", data.model.tracer]];
  const rows = layers.map((layer) => [layer.layer, layer.op, fmt.count(layer.channels), fmt.count(layer.prunable), layer.reason]);
  return [section("totals", "What it costs", null, table("What it costs", ["", ""], facts, {numeric: [1]})),
    section("layers", "Layers that make channels", null, table("Layers that make channels", ["Layer", "Operator", "Channels", "Can go", "Why not all"], rows, {numeric: [2, 3]}))];
}

function totals(data) {
  const labels = {params: "Parameters", buffers: "Buffer entries", macs: "MACs, one sample", weight_bytes: "Weights, bytes"};
  const rows = Object.entries(data.diff.totals).map(([name, [before, after]]) => [labels[name] || name, fmt.count(before), fmt.count(after), before === after ? "" : fmt.change(before, after)]);
  return section("totals", "Totals", null, table("Totals", ["", data.names[0], data.names[1], "Change"], rows, {numeric: [1, 2, 3]}));
}
