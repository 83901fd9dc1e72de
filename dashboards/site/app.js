// Which view is shown follows from the URL; the theme from the button, else from the system.
"use strict";
(function (PS) {
  const h = PS.h;
  const ORDER = ["overview", "pareto", "compare", "trend", "timeline", "run", "nights"];
  let turn = 0;

  PS.render = async function () {
    const mine = ++turn;
    const { view: name, params } = PS.state();
    const view = PS.views[name] || PS.views.overview;
    const place = document.getElementById("view");
    const focused = document.activeElement && document.activeElement.id;
    try {
      const names = ["index", ...view.needs];
      const values = await Promise.all(names.map((each) => PS.load(each)));
      const data = Object.fromEntries(names.map((each, k) => [each, values[k]]));
      const parts = await view.render(data, params);
      if (mine !== turn) return;
      place.replaceChildren(...[parts].flat(4).filter((part) => part));
    } catch (error) {
      if (mine !== turn) return;
      place.replaceChildren(h("p", { class: "banner bad", role: "alert" }, `This view cannot be shown: ${error.message}`));
    }
    document.getElementById("inbox").hidden = view !== PS.views.overview;
    navigation(view);
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
    place.dataset.view = name;
    place.dataset.turn = String(mine);
  };

  function navigation(current) {
    document.getElementById("views").replaceChildren(...ORDER.map((name) =>
      h("a", { href: PS.link(name), "aria-current": PS.views[name] === current ? "page" : null }, PS.views[name].title)));
  }

  function useTheme(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    button.setAttribute("aria-pressed", String(theme === "dark"));
    PS.redraw();
  }

  function stored() {
    try {
      return localStorage.getItem("perfsuite-theme");
    } catch {
      return null;
    }
  }

  document.getElementById("theme").addEventListener("click", () => {
    const theme = PS.isDark() ? "light" : "dark";
    try {
      localStorage.setItem("perfsuite-theme", theme);
    } catch {
      // a page from a folder may have no storage: the choice lasts as long as the page
    }
    useTheme(theme);
  });
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  useTheme(stored() || (system.matches ? "dark" : "light"));
  // The inbox stands in the page without scripts; with them its commands can be copied.
  document.querySelectorAll("button.copy").forEach((button) => {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", () => navigator.clipboard.writeText(button.dataset.copy).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Not allowed: select it"; }));
  });
  window.addEventListener("hashchange", () => {
    PS.render();
    window.scrollTo(0, 0);
  });
  PS.render();
})(window.PS);
