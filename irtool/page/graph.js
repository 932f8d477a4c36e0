// One side of the comparison as an SVG. Only what is in sight is drawn, and far away without words.

const ZOOM = {least: 0.04, most: 2.5, words: 0.42};
const MARGIN = 120;

class Panel {
  constructor(explorer, side, name) {
    this.explorer = explorer;
    this.side = side;
    this.name = name;
    this.drawn = new Map();
    this.frames = s("g", {class: "frames"});
    this.lines = s("g", {class: "edges"});
    this.boxes = s("g", {class: "boxes"});
    this.heads = s("g", {class: "frame heads"}); // above the lines that cross them
    this.world = s("g", null, this.frames, this.lines, this.boxes, this.heads);
    this.svg = s("svg", {
      class: "graph", tabindex: 0, role: "application", "data-side": side,
      "aria-label": `${name}: graph. Arrow keys go from node to node, Enter folds or unfolds a module, Backspace folds the module around, plus and minus zoom.`,
    }, s("defs", null, s("marker", {id: `arrow-${side}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto"},
      s("path", {d: "M0 0.8 L7 4 L0 7.2 z", class: "arrow"}))), this.world);
    this.element = h("figure", {class: "panel", "data-side": side}, h("figcaption", null, name), this.svg);
    listen(this);
  }

  get size() { return [this.svg.clientWidth || 1, this.svg.clientHeight || 1]; }

  /** Draw what is in sight for a camera {x, y, k}: the world's point x, y is at the top left corner. */
  draw(scene, camera) {
    const [width, height] = this.size;
    this.world.setAttribute("transform", `scale(${camera.k}) translate(${-camera.x} ${-camera.y})`);
    const far = camera.k < ZOOM.words;
    this.svg.classList.toggle("far", far);
    const sight = {left: camera.x - MARGIN, top: camera.y - MARGIN, right: camera.x + width / camera.k + MARGIN, bottom: camera.y + height / camera.k + MARGIN};
    const wanted = new Map();
    for (const box of scene.boxes) {
      const [x, y] = [scene.x[box.id], scene.y[box.id]];
      if (box[this.side] && x + BOX.width / 2 > sight.left && x - BOX.width / 2 < sight.right && y > sight.top && y < sight.bottom) wanted.set(`b${box.key}`, box);
    }
    const sighted = [];
    for (const route of scene.routes[this.side]) {
      if (route.right > sight.left && route.left < sight.right && route.bottom > sight.top && route.top < sight.bottom) sighted.push(route);
    }
    if (far) for (const bundle of bundles(sighted)) wanted.set(bundle.key, bundle);
    else for (const route of sighted) wanted.set(route.key, route);
    for (const frame of scene.frames) {
      if (frame.right > sight.left && frame.left < sight.right && frame.bottom > sight.top && frame.top < sight.bottom) wanted.set(`f${frame.path}`, frame).set(`h${frame.path}`, frame.title ??= {head: frame});
    }
    this.update(wanted, scene, far);
  }

  update(wanted, scene, far) {
    for (const [key, entry] of this.drawn) {
      if (wanted.get(key) !== entry.what || entry.far !== far) { entry.element.remove(); this.drawn.delete(key); }
    }
    for (const [key, what] of wanted) {
      if (this.drawn.has(key)) continue;
      if (what.head) {
        const heads = this.headsOf(what.head);
        this.heads.append(heads);
        this.drawn.set(key, {what, element: heads, far});
        continue;
      }
      const element = what.path && !what.nodes && !what.frame ? this.edge(what, far) : what.frame ? this.frame(what) : far ? this.dot(what, scene) : this.box(what, scene);
      (what.nodes ? this.boxes : what.frame ? this.frames : this.lines).append(element);
      this.drawn.set(key, {what, element, far});
    }
    this.mark();
  }

  edge(route, far) {
    return s("path", {d: route.path, class: `edge ${route.status}`, "marker-end": far ? null : `url(#arrow-${this.side})`});
  }

  /** A box from far away: a patch of its colour. */
  dot(box, scene) {
    return s("rect", {
      class: `box plain ${box.kind} ${box.status}`, id: this.idOf(box), "data-box": box.id, role: "button", "aria-label": this.explorer.cards.words(box, this.side).label,
      x: scene.x[box.id] - BOX.width / 2, y: scene.y[box.id] - BOX.height / 2, width: BOX.width, height: BOX.height, rx: 7,
    });
  }

  idOf(box) { return `${this.side}-${box.id}`; }

  frame(frame) {
    return s("g", {class: "frame"}, s("rect", {x: frame.left, y: frame.top, width: frame.right - frame.left, height: frame.bottom - frame.top, rx: 10}));
  }

  headsOf(frame) {
    let x = frame.left + 10;
    const heads = frame.heads.map(({path, label}) => {
      const text = s("text", {x, y: frame.top + 14, "data-fold": path}, `− ${shortened(label, 30)}`);
      x += 6.3 * Math.min(30, label.length) + 24;
      return text;
    });
    return s("g", null, heads);
  }

  box(box, scene) {
    const said = this.explorer.cards.words(box, this.side);
    const group = s("g", {
      class: `box ${box.kind} ${box.status}`, id: this.idOf(box), role: "button", "data-box": box.id,
      transform: `translate(${scene.x[box.id] - BOX.width / 2} ${scene.y[box.id] - BOX.height / 2})`, "aria-label": said.label,
    });
    if (box.kind === "module") group.append(s("rect", {class: "stack", x: 5, y: 5, width: BOX.width, height: BOX.height, rx: 7}));
    group.append(s("rect", {class: "body", width: BOX.width, height: BOX.height, rx: 7}), s("rect", {class: "stripe", x: 0, y: 8, width: 4, height: BOX.height - 16, rx: 2}));
    group.append(s("text", {class: "title", x: 14, y: 19}, said.title, said.leaf ? s("tspan", {class: "leaf", dx: 6}, said.leaf) : null), s("text", {class: "sub", x: 14, y: 36}, said.sub));
    const mark = box.kind === "module" ? "+" : STATUS[box.status].mark;
    if (mark) group.append(s("text", {class: "mark", x: BOX.width - 12, y: 19, "text-anchor": "middle"}, mark));
    return group;
  }

  /** Show which box is chosen and which is under the pointer. */
  mark() {
    const chosen = this.explorer.chosen;
    this.svg.removeAttribute("aria-activedescendant");
    for (const {what, element} of this.drawn.values()) {
      if (!what.nodes) continue;
      element.classList.toggle("chosen", chosen !== null && what.id === chosen);
      if (what.id === chosen) this.svg.setAttribute("aria-activedescendant", element.id);
    }
  }
}

/** Edges of one status as one path each: far away nobody tells them apart. */
function bundles(routes) {
  const byStatus = new Map();
  for (const route of routes) {
    if (!byStatus.has(route.status)) byStatus.set(route.status, []);
    byStatus.get(route.status).push(route.path);
  }
  return [...byStatus].map(([status, paths]) => ({key: `e${status}`, status, path: paths.join("")}));
}

/** A path through points that leaves and arrives straight down. */
function curve(points) {
  const [first, ...rest] = points;
  let path = `M${first[0].toFixed(1)} ${(first[1] + BOX.height / 2).toFixed(1)}`;
  let [x, y] = [first[0], first[1] + BOX.height / 2];
  rest.forEach(([toX, centre], index) => {
    const last = index === rest.length - 1;
    const toY = last ? centre - BOX.height / 2 - 1 : centre - BOX.height / 2;
    const bend = Math.max(8, Math.abs(toY - y) / 2);
    path += ` C${x.toFixed(1)} ${(y + bend).toFixed(1)} ${toX.toFixed(1)} ${(toY - bend).toFixed(1)} ${toX.toFixed(1)} ${toY.toFixed(1)}`;
    [x, y] = [toX, toY];
    if (!last) { y = centre + BOX.height / 2; path += ` L${x.toFixed(1)} ${y.toFixed(1)}`; }
  });
  return path;
}

function shortened(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

/** Pointer, wheel and keys of a panel. */
function listen(panel) {
  const {explorer, svg} = panel;
  const fingers = new Map();
  let travelled = 0;
  const boxAt = (event) => event.target.closest?.("[data-box]");
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture?.(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 1) travelled = 0;
    panel.pressed = {box: boxAt(event), fold: event.target.closest?.("[data-fold]")};
  });
  svg.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) {
      const found = boxAt(event);
      explorer.hover(found ? Number(found.dataset.box) : null, panel, found);
      return;
    }
    const before = [...fingers.values()].map((point) => [...point]);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const now = [...fingers.values()];
    const middle = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
    const [from, to] = [middle(before), middle(now)];
    travelled += Math.hypot(to[0] - from[0], to[1] - from[1]);
    explorer.pan(from[0] - to[0], from[1] - to[1]);
    if (now.length > 1) {
      const span = (points) => Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) || 1;
      explorer.zoom(span(now) / span(before), at(panel, to));
    }
    if (travelled > 4) explorer.hover(null);
  });
  const lift = (event) => {
    const wasOne = fingers.size === 1;
    fingers.delete(event.pointerId);
    if (event.type === "pointerup" && wasOne && travelled <= 4 && panel.pressed) {
      if (panel.pressed.fold) explorer.fold(panel.pressed.fold.dataset.fold);
      else if (panel.pressed.box) explorer.press(Number(panel.pressed.box.dataset.box));
    }
  };
  svg.addEventListener("pointerup", lift);
  svg.addEventListener("pointercancel", lift);
  svg.addEventListener("pointerleave", () => explorer.hover(null));
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== svg) return;
    event.preventDefault();
    explorer.zoom(Math.exp(-event.deltaY * (event.ctrlKey && Math.abs(event.deltaY) < 50 ? 0.01 : 0.0016)), at(panel, [event.clientX, event.clientY]));
  }, {passive: false});
  svg.addEventListener("keydown", (event) => explorer.key(event, panel));
  svg.addEventListener("focus", () => explorer.focused(panel));
  svg.addEventListener("blur", () => explorer.hover(null));
}

function at(panel, [x, y]) {
  const frame = panel.svg.getBoundingClientRect();
  return [x - frame.left, y - frame.top];
}
