// Did the nights happen, and could their numbers be used? A square for each day; the missing ones too.
"use strict";
(function (PS) {
  const h = PS.h;
  const SIGNS = { good: "✓", degraded: "!", invalid: "✗", failed: "F", missing: "·" };
  const WORDS = { good: "all trials valid", degraded: "some trials degraded", invalid: "some trials invalid", failed: "did not complete", missing: "no run" };

  PS.views.nights = {
    title: "Nights",
    needs: ["nights"],
    render({ nights }) {
      if (!nights.length) return PS.empty("No scenario runs about daily yet: five days make it a nightly.");
      return [h("h2", {}, "Reliability of the nights"), legend(), nights.map(scenario)];
    },
  };

  function legend() {
    return h("p", { class: "legend" }, Object.entries(SIGNS).map(([state, sign]) => h("span", {}, h("span", { class: `night ${state}`, "aria-hidden": "true" }, sign), ` ${WORDS[state]} `)));
  }

  function scenario(row) {
    const count = (state) => row.nights.filter((night) => night.state === state).length;
    const used = count("good") + count("degraded");
    const rows = row.nights.filter((night) => night.state !== "good");
    return h("section", {}, h("h3", {}, `${row.scenario} `, PS.emulated(row.emulated)),
      h("p", {}, h("strong", {}, `${used} of ${row.nights.length} nights usable`), `: ${count("good")} good, ${count("degraded")} degraded, ${count("invalid")} with invalid trials, ${count("failed")} failed, ${count("missing")} missing.`),
      h("ol", { class: "nights", "aria-label": `Nights of ${row.scenario}` }, row.nights.map((night) => h("li", {}, cell(night)))),
      rows.length ? PS.table("Nights that are not good", [
        { label: "Day", of: (night) => night.day, sort: (night) => night.day },
        { label: "State", of: (night) => `${SIGNS[night.state]} ${WORDS[night.state]}`, sort: (night) => night.state },
        { label: "Why", of: (night) => night.why },
        { label: "Run", of: (night) => night.run_id || PS.DASH },
      ], rows) : null);
  }

  function cell(night) {
    const words = `${night.day}: ${WORDS[night.state]}${night.why && night.state !== "missing" ? `, ${night.why}` : ""}`;
    const inside = [h("span", { "aria-hidden": "true" }, SIGNS[night.state]), h("span", { class: "hidden" }, words)];
    return night.run_id
      ? h("a", { class: `night ${night.state}`, title: words, href: PS.link("run", { run: night.run_id }) }, inside)
      : h("span", { class: `night ${night.state}`, title: words }, inside);
  }
})(window.PS);
