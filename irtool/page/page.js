// The page as a whole: heading, theme, contents, parts.

const THEMES = ["auto", "light", "dark"];

function themeButton() {
  let theme = "auto";
  const button = h("button", {type: "button", class: "theme"});
  const show = () => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    button.textContent = {auto: "Theme: system", light: "Theme: light", dark: "Theme: dark"}[theme];
  };
  try { theme = THEMES.includes(localStorage.getItem("irtool-theme")) ? localStorage.getItem("irtool-theme") : "auto"; } catch { /* a file may have no storage */ }
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("irtool-theme", theme); } catch { /* likewise */ }
    show();
  });
  show();
  return button;
}

function runParts(data) {
  return [graphs(data), channels(data), measured(data), chain(data), curves(data), sensitivity(data), origin(data)];
}

function diffParts(data) {
  return [graphs(data), totals(data), differences(data)];
}

function viewParts(data) {
  return [graphs(data), ...model(data)];
}

const PARTS = {diff: diffParts, run: runParts, view: viewParts};
const KINDS = {diff: " diff", run: " report", view: " view"};

function heading(data) {
  if (data.kind === "view") return [h("h1", null, data.title), (data.model.notes || []).map((text) => h("p", {class: "missing"}, text))];
  if (data.kind === "diff") {
    return [h("h1", null, data.names[0], h("span", {class: "muted"}, " against "), data.names[1]), h("p", {class: "lead"}, data.diff.same ? "Both compute the same." : "They differ."), diffTiles(data.diff.totals)];
  }
  const {options, channels: [total, kept]} = data.report;
  const words = [options.criterion && `ranked by ${options.criterion}`, options.ratio !== undefined && `ratio ${options.ratio}`, options.scope, `${fmt.count(kept)} of ${fmt.count(total)} channels kept`];
  return [h("h1", null, data.title), h("p", {class: "lead"}, words.filter(Boolean).join(", ")), tiles(data.report),
    (data.missing || []).map((text) => h("p", {class: "missing"}, text))];
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = PARTS[data.kind](data).filter(Boolean);
  const links = parts.map((part) => h("li", null, h("a", {href: `#${part.id}`}, part.querySelector("h2").textContent)));
  document.getElementById("page").replaceChildren(
    h("header", null, h("div", {class: "bar"}, h("span", {class: "brand"}, "irtool", h("span", {class: "muted"}, KINDS[data.kind])), themeButton()), heading(data)),
    h("nav", {"aria-label": "Contents"}, h("ul", null, links)), h("main", {id: "main"}, parts));
  document.documentElement.dataset.ready = "yes";
}

start();
