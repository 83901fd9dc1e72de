// Elements, data files and the state in the URL. Text from data only ever becomes text nodes and attribute values.
"use strict";
window.PS = window.PS || { views: {} };

(function (PS) {
  const loaded = {};
  const waiting = {};

  window.perfsuiteData = function (name, value) {
    loaded[name] = value;
  };

  // An element: h("a", {href: "#", onclick: f}, "text", child, null)
  PS.h = function (tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };

  // The value of a data file, loaded once by a script element: a page from a folder may do this and nothing else.
  PS.load = function (name, file) {
    if (name in loaded) return Promise.resolve(loaded[name]);
    if (!(name in waiting)) {
      waiting[name] = new Promise((resolve, reject) => {
        const script = PS.h("script", { src: file || `data/${name}.js` });
        script.onload = () => (name in loaded ? resolve(loaded[name]) : reject(new Error(`${name} has no data`)));
        script.onerror = () => reject(new Error(`${script.getAttribute("src")} cannot be loaded`));
        document.head.append(script);
      });
    }
    return waiting[name];
  };

  // {view, params} of "#/pareto?model=x"
  PS.state = function () {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    return { view: path || "overview", params: Object.fromEntries(new URLSearchParams(query || "")) };
  };

  PS.link = function (view, params) {
    const query = new URLSearchParams(Object.entries(params || {}).filter(([, value]) => value !== null && value !== undefined && value !== ""));
    return `#/${view}${[...query].length ? "?" + query : ""}`;
  };

  // Change parameters of the view in place, without a new entry in the history.
  PS.set = function (changes) {
    const { view, params } = PS.state();
    history.replaceState(null, "", PS.link(view, { ...params, ...changes }));
    PS.render();
  };

  PS.unique = (values) => [...new Set(values)];

  // A labelled select whose value is a parameter of the URL. options: [[value, words], ...]
  PS.select = function (label, name, options, value) {
    const id = `control-${name}`;
    const list = options.map(([key, words]) => PS.h("option", { value: key, selected: key === value }, words));
    return PS.h("div", { class: "control" }, PS.h("label", { for: id }, label),
      PS.h("select", { id, onchange: (event) => PS.set({ [name]: event.target.value }) }, list));
  };

  PS.checkbox = function (label, name, isOn) {
    const id = `control-${name}`;
    return PS.h("div", { class: "control" },
      PS.h("input", { id, type: "checkbox", checked: isOn, onchange: (event) => PS.set({ [name]: event.target.checked ? "1" : "0" }) }),
      PS.h("label", { for: id }, label));
  };

  PS.empty = (...words) => PS.h("p", { class: "empty" }, ...words);
  PS.emulated = (is) => (is ? PS.h("span", { class: "mark emulated" }, "EMULATED") : null);
  PS.controls = (...parts) => PS.h("div", { class: "controls", role: "group", "aria-label": "What is shown" }, parts);
})(window.PS);
