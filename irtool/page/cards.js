// What is said about a node or a folded module: on its box, in its card, to a screen reader.

class Cards {
  constructor(tree, names, fold) {
    this.tree = tree;
    this.names = names;
    this.fold = fold;
  }

  words(box, side) {
    if (box.kind === "module") {
      const sum = (what) => box.nodes.reduce((total, index) => total + (this.tree.nodes[index][side]?.[what] ?? 0), 0);
      const held = box.nodes.filter((index) => this.tree.nodes[index][side]).length;
      const sub = `${held} nodes · ${fmt.short(sum("params"))} params`;
      return {title: shortened(shortName(box.label), 19), sub, label: `module ${box.label}, ${sub}, ${STATUS[box.status].words}, folded`};
    }
    const node = this.tree.nodes[box.first];
    const own = node[side] || {};
    const wide = own.channels ? (own.channels[0] === own.channels[1] ? `${own.channels[0]} ch` : `${own.channels[0]} → ${own.channels[1]} ch`) : "";
    const sub = [wide, fmt.shape(own.shape)].filter(Boolean).join(" · ");
    const title = shortened(node.op === "Opaque" ? node.callee : node.op.replace("Normalization", "Norm"), 19);
    return {title, leaf: node.label === node.op ? "" : shortened(node.label, Math.max(0, 19 - title.length)), sub: shortened(sub, 27), label: `${node.op} ${fullName(node)}, ${sub}, ${STATUS[node.status].words}`};
  }

  /** A node's card: shapes and costs of both sides; in `full` attributes and weights too. */
  of(box, full) {
    if (box.kind === "module") return this.moduleCard(box, full);
    const node = this.tree.nodes[box.first];
    const sides = [node.before, node.after];
    const line = (what, read) => [what, ...sides.map((side) => (side ? read(side) : "–"))];
    const rows = [line("output", (side) => fmt.shape(side.shape))];
    if (sides.some((side) => side?.channels)) rows.push(line("channels", (side) => (side.channels ? side.channels.join(" → ") : "–")));
    if (sides.some((side) => side?.params)) rows.push(line("parameters", (side) => fmt.count(side.params)));
    if (sides.some((side) => side?.macs)) rows.push(line("MACs", (side) => fmt.count(side.macs)));
    if (full) {
      const gather = (what) => [...new Set(sides.flatMap((side) => Object.keys(side?.[what] ?? {})))];
      for (const name of gather("attrs")) rows.push(line(name, (side) => fmt.value(side.attrs[name])));
      for (const name of gather("weights")) rows.push(line(name, (side) => fmt.shape(side.weights[name])));
    }
    return [
      h("h4", null, h("span", {class: `dot ${node.status}`}), node.op === "Opaque" ? node.callee : node.op), h("p", {class: "name"}, fullName(node)),
      full ? this.crumbs(box.first) : null, this.sides(rows),
      node.status === "same" ? null : h("ul", {class: "notes"}, [h("li", {class: node.status}, STATUS[node.status].words), ...node.notes.map((note) => h("li", null, note))]),
    ].filter(Boolean);
  }

  moduleCard(box, full) {
    const nodes = box.nodes.map((index) => this.tree.nodes[index]);
    const sum = (side, what) => nodes.reduce((total, node) => total + (node[side]?.[what] ?? 0), 0);
    const count = (side) => nodes.filter((node) => node[side]).length;
    const rows = [["nodes", count("before"), count("after")], ...[["parameters", "params"], ["MACs", "macs"]].map(([label, what]) => [label, fmt.count(sum("before", what)), fmt.count(sum("after", what))])];
    return [h("h4", null, h("span", {class: `dot ${box.status}`}), "Module"), h("p", {class: "name"}, box.label), full ? this.crumbs(box.first, box.path) : null, this.sides(rows),
      h("p", {class: "muted"}, full ? "Enter or a click unfolds it." : "Click to unfold.")].filter(Boolean);
  }

  sides(rows) {
    return h("table", {class: "sides"}, h("thead", null, h("tr", null, h("td"), h("th", {scope: "col"}, this.names[0]), h("th", {scope: "col"}, this.names[1]))),
      h("tbody", null, rows.map(([what, before, after]) => h("tr", {class: String(before) === String(after) ? null : "differs"}, h("th", {scope: "row"}, what), h("td", null, before), h("td", null, after)))));
  }

  /** The modules around, each with a button that folds it. */
  crumbs(index, until) {
    const around = this.tree.ancestors(index).filter((path) => this.tree.open.has(path) && path !== until);
    if (!around.length) return null;
    return h("p", {class: "crumbs"}, "Fold: ", around.map((path) => h("button", {type: "button", onclick: () => this.fold(path)}, shortened(shortName(this.tree.modules.get(path).label), 28))));
  }
}

function fullName(node) {
  return node.module ? `${node.module}.${node.label}` : node.label;
}

/** The end of a module's path: `denselayer1`; a number with what it counts, `layer1.0`. */
function shortName(path) {
  const parts = path.split(".");
  const last = parts.pop();
  return /^\d+$/.test(last) && parts.length ? `${parts.pop()}.${last}` : last;
}
