// Both sides with one camera: the same node stands at the same place in both.

const LEAST_READ = 0.5; // smaller than that, words cannot be read: then the graph opens at its first node

class Explorer {
  constructor(picture, names) {
    this.tree = new Tree(picture);
    this.names = names;
    this.cards = new Cards(this.tree, names, (path) => this.fold(path));
    this.camera = {x: 0, y: 0, k: 1};
    this.chosen = null;
    this.panels = ["before", "after"].map((side, index) => new Panel(this, side, names[index]));
    this.tip = h("div", {class: "tip", role: "tooltip", hidden: true});
    this.details = h("aside", {class: "details", "aria-live": "polite", "aria-label": "The chosen node"});
    this.element = h("div", {class: "explorer"}, this.toolbar(), this.legend(),
      h("div", {class: "stage", "data-shown": "after"}, h("div", {class: "panels"}, this.panels.map((panel) => panel.element)), this.details), this.tip);
    this.stage = this.element.querySelector(".stage");
    this.tree.openSome();
    this.arrange();
    this.describe();
    new ResizeObserver(debounce(60, () => { if (!this.placed) this.fit(); this.draw(); })).observe(this.panels[0].svg.parentElement);
  }

  // What stands around the panels

  toolbar() {
    const button = (label, words, action) => h("button", {type: "button", title: words, "aria-label": words, onclick: action}, label);
    this.query = h("input", {
      type: "search", id: "find", placeholder: "Find a node: conv1, Relu, changed …", autocomplete: "off", spellcheck: "false", role: "combobox",
      "aria-expanded": "false", "aria-controls": "found", "aria-label": "Find a node", oninput: () => this.search(), onkeydown: (event) => this.searchKey(event),
      onblur: () => setTimeout(() => this.close(), 150), onfocus: () => this.search(),
    });
    this.found = h("ul", {id: "found", class: "found", role: "listbox", "aria-label": "Nodes found", hidden: true});
    const side = (value, index) => h("button", {type: "button", "data-show": value, "aria-pressed": String(value === "after"), onclick: () => this.show(value)}, this.names[index]);
    return h("div", {class: "toolbar", role: "toolbar", "aria-label": "Graph"}, h("div", {class: "search"}, this.query, this.found),
      h("div", {class: "group flip"}, ["before", "after"].map(side)),
      h("div", {class: "group"}, button("Fold all", "Fold all modules", () => this.refold(() => this.tree.foldAll())),
        button("Unfold all", "Unfold all modules", () => this.refold(() => this.tree.openAll()))),
      h("div", {class: "group"}, button("−", "Zoom out", () => this.zoom(1 / 1.3)), button("+", "Zoom in", () => this.zoom(1.3)), button("Fit", "Show all of it", () => { this.fit(true); this.draw(); })));
  }

  legend() {
    const counts = {};
    for (const node of this.tree.nodes) counts[node.status] = (counts[node.status] || 0) + 1;
    const chips = ["changed", "replaced", "removed", "added", "lowered"].filter((status) => counts[status]).map((status) => h("button", {
      type: "button", class: `chip ${status}`, title: `Go to the next node that is ${STATUS[status].words}`, onclick: () => this.next(status),
    }, h("span", {class: "sign", "aria-hidden": "true"}, STATUS[status].mark), `${fmt.count(counts[status])} ${STATUS[status].words}`));
    return h("div", {class: "legend"}, chips, h("span", {class: "muted"}, `${fmt.count(counts.same || 0)} the same`),
      h("span", {class: "muted hint"}, "Drag to move; Ctrl and the wheel, or a pinch, to zoom; click a module to unfold it."));
  }

  show(side) {
    this.stage.dataset.shown = side;
    for (const button of this.element.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === side));
    this.draw();
  }

  // The scene

  arrange() {
    const view = this.tree.view();
    const union = [...new Map([...view.edges.before, ...view.edges.after].map(([a, b]) => [a * 1e6 + b, [a, b]])).values()];
    const through = bypasses(view.boxes, view.edges);
    const placed = layered(view.boxes.length, union, through);
    const keys = {before: new Set(view.edges.before.map(([a, b]) => a * 1e6 + b)), after: new Set(view.edges.after.map(([a, b]) => a * 1e6 + b))};
    const routes = {};
    for (const side of ["before", "after"]) {
      const other = side === "before" ? keys.after : keys.before;
      routes[side] = view.edges[side].map(([a, b]) => {
        const key = a * 1e6 + b;
        const alone = [view.boxes[a], view.boxes[b]].find((box) => !box.before || !box.after);
        const status = other.has(key) || through.has(key) ? "same" : alone ? alone.status : side === "before" ? "removed" : "added";
        return route(placed.routes.get(key), key, status);
      });
    }
    this.scene = {...view, ...placed, routes, frames: []};
    this.scene.frames = frames(this.tree, this.scene);
    this.count = view.boxes.length;
    this.element.dataset.boxes = String(view.boxes.length);
  }

  /** Change what is folded; what is chosen (or in the middle) stays where it is. */
  refold(action) {
    const anchor = this.chosen !== null ? this.scene.boxes[this.chosen].first : this.nearest();
    const before = this.placeOf(anchor);
    const node = this.chosen !== null ? this.scene.boxes[this.chosen].first : null;
    action();
    this.arrange();
    const after = this.placeOf(anchor);
    this.camera.x += after[0] - before[0];
    this.camera.y += after[1] - before[1];
    this.chosen = node === null ? null : this.scene.boxOf[node];
    this.clamp();
    this.draw();
    this.describe();
  }

  placeOf(index) {
    const id = this.scene.boxOf[index];
    return [this.scene.x[id], this.scene.y[id]];
  }

  nearest() {
    const [width, height] = this.panels[0].size;
    const [x, y] = [this.camera.x + width / 2 / this.camera.k, this.camera.y + height / 2 / this.camera.k];
    let best = 0;
    for (const box of this.scene.boxes) {
      if (Math.hypot(this.scene.x[box.id] - x, this.scene.y[box.id] - y) < Math.hypot(this.scene.x[best] - x, this.scene.y[best] - y)) best = box.id;
    }
    return this.scene.boxes[best].first;
  }

  toggle(id) {
    const box = this.scene.boxes[id];
    if (box.kind === "module") this.refold(() => this.tree.open.add(box.path));
  }

  fold(path) {
    this.refold(() => { this.tree.open.delete(path); });
  }

  foldAround(id) {
    const box = this.scene.boxes[id];
    const around = box.kind === "module" ? this.tree.modules.get(box.path).parent : this.tree.home[box.first];
    if (around) this.fold(around);
  }

  // The camera

  visible() { return this.panels.filter((panel) => panel.svg.clientWidth > 0); }

  /** So small that all of it can be seen. */
  least() {
    const [width, height] = (this.visible()[0] || this.panels[0]).size;
    return Math.min(ZOOM.least, (width - 40) / this.scene.width, (height - 40) / this.scene.height);
  }

  fit(whole = false) {
    const [width, height] = (this.visible()[0] || this.panels[0]).size;
    if (width < 2) return;
    this.placed = true;
    const across = (width - 40) / this.scene.width;
    const k = whole ? Math.min(1, across, (height - 40) / this.scene.height) : Math.min(1, Math.max(LEAST_READ, across));
    this.camera.k = k;
    this.camera.x = whole || across >= LEAST_READ ? this.scene.width / 2 - width / 2 / this.camera.k : this.scene.x[0] - width / 2 / this.camera.k;
    this.camera.y = whole ? this.scene.height / 2 - height / 2 / this.camera.k : -24 / this.camera.k;
  }

  pan(dx, dy) {
    this.camera.x += dx / this.camera.k;
    this.camera.y += dy / this.camera.k;
    this.clamp();
    this.draw();
  }

  zoom(factor, point) {
    const [width, height] = (this.visible()[0] || this.panels[0]).size;
    const [x, y] = point || [width / 2, height / 2];
    const k = Math.min(ZOOM.most, Math.max(this.least(), this.camera.k * factor));
    this.camera.x += x / this.camera.k - x / k;
    this.camera.y += y / this.camera.k - y / k;
    this.camera.k = k;
    this.clamp();
    this.draw();
  }

  clamp() {
    const [width, height] = (this.visible()[0] || this.panels[0]).size.map((size) => size / this.camera.k);
    this.camera.x = Math.min(this.scene.width - width * 0.2, Math.max(-width * 0.8, this.camera.x));
    this.camera.y = Math.min(this.scene.height - height * 0.2, Math.max(-height * 0.8, this.camera.y));
  }

  centre(id) {
    const [width, height] = (this.visible()[0] || this.panels[0]).size;
    if (this.camera.k < ZOOM.words) this.camera.k = 0.8;
    this.camera.x = this.scene.x[id] - width / 2 / this.camera.k;
    this.camera.y = this.scene.y[id] - height / 2 / this.camera.k;
    this.draw();
  }

  /** Move just enough that a box is in sight. */
  follow(id) {
    const [width, height] = (this.visible()[0] || this.panels[0]).size.map((size) => size / this.camera.k);
    const [x, y, dx, dy] = [this.scene.x[id], this.scene.y[id], BOX.width / 2 + 12, BOX.height / 2 + 12];
    this.camera.x = Math.min(x - dx, Math.max(this.camera.x, x + dx - width));
    this.camera.y = Math.min(y - dy, Math.max(this.camera.y, y + dy - height));
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      for (const panel of this.visible()) panel.draw(this.scene, this.camera);
    });
  }

  // Choosing

  press(id) {
    const box = this.scene.boxes[id];
    this.choose(id);
    if (box.kind === "module") this.toggle(id);
  }

  choose(id) {
    this.chosen = id;
    for (const panel of this.panels) panel.mark();
    this.describe();
  }

  /** Unfold down to a node, choose it and bring it into sight. */
  go(index) {
    if (this.tree.cover(index) !== null) {
      this.tree.reveal(index);
      this.arrange();
    }
    this.choose(this.scene.boxOf[index]);
    const node = this.tree.nodes[index];
    if (!node[this.stage.dataset.shown]) this.show(node.before ? "before" : "after");
    this.centre(this.chosen);
  }

  next(status) {
    const start = this.chosen !== null ? Math.max(...this.scene.boxes[this.chosen].nodes) : -1;
    const all = this.tree.nodes.map((node, index) => (node.status === status ? index : -1)).filter((index) => index >= 0);
    this.go(all.find((index) => index > start) ?? all[0]);
  }

  focused(panel) {
    if (this.chosen === null) this.choose(0);
    this.tipAt(panel);
  }

  key(event, panel) {
    const moves = {ArrowDown: () => this.along(1), ArrowUp: () => this.along(-1), ArrowLeft: () => this.beside(-1), ArrowRight: () => this.beside(1), Home: () => this.step(0)};
    const actions = {
      Enter: () => this.toggle(this.chosen), " ": () => this.toggle(this.chosen), Backspace: () => this.foldAround(this.chosen),
      "+": () => this.zoom(1.3), "=": () => this.zoom(1.3), "-": () => this.zoom(1 / 1.3), "/": () => this.query.focus(), Escape: () => this.hover(null),
    };
    const action = moves[event.key] || actions[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
    if (event.key !== "/" && event.key !== "Escape") requestAnimationFrame(() => requestAnimationFrame(() => this.tipAt(panel)));
  }

  step(id) {
    this.choose(id);
    this.follow(id);
  }

  along(direction) {
    const all = [...this.scene.edges.after, ...this.scene.edges.before];
    const found = all.filter((edge) => edge[direction > 0 ? 0 : 1] === this.chosen).map((edge) => edge[direction > 0 ? 1 : 0]);
    if (found.length) this.step(found.sort((a, b) => (this.scene.rank[a] - this.scene.rank[b]) * direction)[0]);
  }

  beside(direction) {
    const row = this.scene.ranks[this.scene.rank[this.chosen]];
    const next = row[row.indexOf(this.chosen) + direction];
    if (next !== undefined) this.step(next);
  }

  // Finding

  search() {
    const words = this.query.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    this.hits = [];
    if (words.length) {
      this.tree.nodes.forEach((node, index) => {
        const text = `${node.op} ${node.module}.${node.label} ${node.before?.name ?? ""} ${node.after?.name ?? ""} ${node.status}`.toLowerCase();
        if (this.hits.length < 40 && words.every((word) => text.includes(word))) this.hits.push(index);
      });
    }
    this.picked = this.hits.length ? 0 : -1;
    this.found.replaceChildren(...this.hits.map((index, place) => {
      const node = this.tree.nodes[index];
      return h("li", {role: "option", id: `hit-${place}`, class: node.status, onpointerdown: (event) => { event.preventDefault(); this.take(place); }},
        h("b", null, node.op), " ", fullName(node));
    }), ...(words.length && !this.hits.length ? [h("li", {class: "none"}, "No node is called so.")] : []));
    this.found.hidden = !words.length;
    this.query.setAttribute("aria-expanded", String(Boolean(words.length)));
    this.pick(0);
  }

  pick(by) {
    if (this.hits?.length) this.picked = (this.picked + by + this.hits.length) % this.hits.length;
    [...this.found.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === this.picked)));
    if (this.hits?.length) {
      this.query.setAttribute("aria-activedescendant", `hit-${this.picked}`);
      this.found.children[this.picked].scrollIntoView({block: "nearest"});
    }
  }

  searchKey(event) {
    const actions = {ArrowDown: () => this.pick(1), ArrowUp: () => this.pick(-1), Enter: () => this.take(this.picked), Escape: () => this.close()};
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  take(place) {
    if (!this.hits?.length) return;
    this.go(this.hits[place]);
    this.close();
    (this.visible()[0] || this.panels[0]).svg.focus({preventScroll: true});
  }

  close() {
    this.found.hidden = true;
    this.query.setAttribute("aria-expanded", "false");
    this.query.removeAttribute("aria-activedescendant");
  }

  // The card of a node

  hover(id, panel, element) {
    if (id === null) { this.tip.hidden = true; return; }
    this.tip.replaceChildren(...this.cards.of(this.scene.boxes[id], false));
    this.tip.hidden = false;
    const around = element.getBoundingClientRect();
    const [width, height] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const left = Math.min(Math.max(8, around.left), document.documentElement.clientWidth - width - 8);
    const below = around.bottom + height + 14 < window.innerHeight;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${below ? around.bottom + 8 : Math.max(8, around.top - height - 8)}px`;
  }

  tipAt(panel) {
    if (this.chosen === null || document.activeElement !== panel.svg) return;
    const entry = [...panel.drawn.values()].find(({what}) => what.nodes && what.id === this.chosen);
    if (entry) this.hover(this.chosen, panel, entry.element);
    else this.hover(null);
  }

  describe() {
    if (this.chosen === null) {
      this.details.hidden = true; // the graph has the whole width
      this.details.replaceChildren();
      return;
    }
    this.details.hidden = false;
    const close = h("button", {type: "button", class: "close", "aria-label": "Close", title: "Close", onclick: () => this.choose(null)}, "×");
    this.details.replaceChildren(close, ...this.cards.of(this.scene.boxes[this.chosen], true));
  }
}

function route(points, key, status) {
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  return {key: `e${key}`, points, path: curve(points), status, left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys)};
}

/** A frame around each open module whose boxes have no strangers among them. Its heading names the frames around that begin there too. */
function frames(tree, scene) {
  const found = [];
  const open = [...tree.open].filter((path) => path !== "" && tree.shown(path)).map((path) => tree.modules.get(path));
  for (const module of open.sort((a, b) => a.depth - b.depth)) {
    const inside = new Set(module.all.map((index) => scene.boxOf[index]));
    if (inside.size < 2) continue;
    const pad = 8 + 4 * Math.max(0, 5 - module.depth);
    const xs = [...inside].map((id) => scene.x[id]);
    const ys = [...inside].map((id) => scene.y[id]);
    const [loX, hiX, loY, hiY] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const strangers = scene.boxes.some((box) => !inside.has(box.id) && scene.x[box.id] + BOX.width > loX && scene.x[box.id] - BOX.width < hiX && scene.y[box.id] >= loY && scene.y[box.id] <= hiY);
    if (strangers) continue;
    const top = loY - BOX.height / 2 - 22;
    const around = found.findLast((frame) => frame.top === top && frame.left <= loX && frame.right >= hiX && frame.heads.length);
    const heads = [...(around?.heads ?? []), {path: module.path, label: shortName(module.label)}];
    if (around) around.heads = [];
    found.push({frame: true, path: module.path, heads, left: loX - BOX.width / 2 - pad, right: hiX + BOX.width / 2 + pad, top, bottom: hiY + BOX.height / 2 + 7});
  }
  return found;
}
