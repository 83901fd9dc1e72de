// What a step's time goes to, of a run whose bundle holds a profile: a bar for each arm, then an icicle of each arm.
"use strict";
(function (PS) {
  const h = PS.h;
  const DARK_TEXT = "#1a1a1a"; // on the bars, whose colours are the same in both themes
  const SHADE = "#e4e4e4";

  PS.kernelProfile = function (profile, run) {
    if (!profile) return null;
    const head = h("h3", { id: "kernels" }, "Kernel profile ", PS.emulated(profile.emulated));
    if (profile.problem) return h("section", { "aria-labelledby": "kernels" }, head, PS.empty(profile.problem));
    return h("section", { "aria-labelledby": "kernels" }, head,
      h("p", {}, `Milliseconds of a mean step, ${profile.load_point || "at the load of the traces"}.`),
      profile.sentences.length ? h("ul", {}, profile.sentences.map((each) => h("li", {}, each))) : null,
      legend(profile),
      profile.phases.map((phase) => [bars(phase, profile, run), phase.arms.map((arm) => icicle(arm, phase, profile, run))]),
      profile.findings.length ? h("ul", { class: "why" }, profile.findings.map((each) => h("li", {}, each))) : null);
  };

  const ms = (seconds) => `${PS.number(seconds * 1e3)} ms`;
  const share = (seconds, arm) => (arm.step_s ? `${((seconds / arm.step_s) * 100).toFixed(1)} %` : PS.DASH);
  const colourOf = (segment) => (/^#[0-9a-f]{6}$/i.test(segment.colour) ? segment.colour : SHADE);

  // Names of parts without their number formats: both arms' GEMMs have one colour.
  function legend(profile) {
    const parts = profile.phases.flatMap((phase) => phase.arms.flatMap((arm) => arm.segments));
    const names = new Map(parts.map((part) => [colourOf(part), part.label.replace(/ (FP|BF)\d+$/, "")]));
    return h("p", { class: "legend" }, [...names].map(([colour, name]) => h("span", {}, h("span", { class: "swatch", style: `background:${colour}`, "aria-hidden": "true" }), ` ${name}`)));
  }

  function bars(phase, profile, run) {
    const rows = phase.arms.flatMap((arm) => arm.segments.map((each) => [arm.arm, each.label, each.seconds * 1e3, arm.step_s ? each.seconds / arm.step_s : null]));
    const blocks = phase.arms.flatMap((arm, row) => placed(arm.segments, 0).map((each) => block(each, row, each.part.label, `${arm.arm}, ${each.part.label}\n${ms(each.part.seconds)} of ${ms(arm.step_s)}, ${share(each.part.seconds, arm)}`, colourOf(each.part))));
    return PS.figure({
      title: `${phase.phase} step by kind of kernel`,
      describe: `${phase.phase} step: ${phase.arms.map((arm) => `${arm.arm} ${ms(arm.step_s)}`).join(", ")}. The table below has every part.`,
      name: `kernels-${phase.phase}-${run.id}`, isEmulated: profile.emulated, height: 96 + 44 * phase.arms.length,
      columns: ["arm", "part", "ms per step", "share of the step"], rows,
      make: () => option(phase.arms.map((arm) => `${arm.arm}\n${ms(arm.step_s)}`), blocks, Math.max(...phase.arms.map((arm) => arm.step_s)), 110),
    });
  }

  // Rows: the step, its parts, their kernels; width is time.
  function icicle(arm, phase, profile, run) {
    const parts = placed(arm.segments, 0);
    const kernels = parts.flatMap((each) => placed(each.part.kernels, each.begin).map((kernel) => ({ ...kernel, of: each.part })));
    const blocks = [
      block({ begin: 0, end: arm.step_s }, 0, `step ${ms(arm.step_s)}`, `step ${ms(arm.step_s)}, mean of ${arm.num_steps}`, SHADE),
      ...parts.map((each) => block(each, 1, each.part.label, `${each.part.label}\n${ms(each.part.seconds)}, ${share(each.part.seconds, arm)}`, colourOf(each.part))),
      ...kernels.map((each) => block(each, 2, each.part.name, `${each.part.name}\n${ms(each.part.seconds)} in ${PS.number(each.part.calls)} calls a step, ${share(each.part.seconds, arm)}`, colourOf(each.of))),
    ];
    const rows = arm.segments.flatMap((segment) => (segment.kernels.length ? segment.kernels : [{ name: "", calls: null, seconds: segment.seconds }])
      .map((kernel) => [segment.label, kernel.name, kernel.calls, kernel.seconds * 1e3, arm.step_s ? kernel.seconds / arm.step_s : null]));
    return PS.figure({
      title: `${arm.arm}, ${arm.title}`,
      describe: `${arm.arm}, ${phase.phase} step of ${ms(arm.step_s)} by part and kernel. The table below has every kernel.`,
      name: `kernels-${phase.phase}-${arm.arm}-${run.id}`, isEmulated: profile.emulated, height: 190,
      columns: ["part", "kernel", "calls per step", "ms per step", "share of the step"], rows,
      make: () => option(["step", "part", "kernel"], blocks, arm.step_s, 70),
    });
  }

  function placed(parts, from) {
    let at = from;
    return parts.map((part) => {
      const begin = at;
      at += part.seconds;
      return { part, begin, end: at };
    });
  }

  const block = (span, row, text, words, colour) => ({ value: [span.begin * 1e3, span.end * 1e3, row], text, words, colour });

  function option(names, blocks, longest_s, left) {
    return {
      grid: { left, right: 20, top: 10, bottom: 46 },
      xAxis: PS.axis("ms per step", { type: "value", min: 0, max: longest_s * 1e3, nameGap: 28, axisLabel: { color: PS.ink(), showMaxLabel: false } }),
      yAxis: PS.axis("", { type: "category", data: names, inverse: true, axisTick: { show: false }, splitLine: { show: false }, axisLabel: { color: PS.ink(), lineHeight: 15 } }),
      series: [{
        type: "custom", data: blocks, encode: { x: [0, 1], y: 2 }, clip: true,
        tooltip: { formatter: (each) => each.data.words },
        renderItem: (params, api) => rectangle(blocks[params.dataIndex], api),
      }],
    };
  }

  function rectangle({ value: [begin, end, row], text, colour }, api) {
    const [x, y] = api.coord([begin, row]);
    const width = Math.max(0.5, api.coord([end, row])[0] - x);
    const height = api.size([0, 1])[1] * 0.84;
    const shown = width > 34 ? { type: "text", style: { text, width: width - 8, overflow: "truncate", fill: DARK_TEXT, fontSize: 11 } } : undefined;
    return {
      type: "rect", shape: { x, y: y - height / 2, width, height },
      style: { fill: colour, stroke: PS.isDark() ? "#16191d" : "#ffffff", lineWidth: width > 3 ? 1 : 0 },
      textContent: shown, textConfig: { position: "inside" },
    };
  }
})(window.PS);
