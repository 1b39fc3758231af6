// Inside: the landscape of layers, and below it the operation behind the chosen map, down to one number.

import { ask, latest, pictureOf } from "../fetching.js";
import { h, percent, within } from "../drawing/elements.js";
import { landscape } from "../drawing/landscape.js";
import { operation } from "../drawing/operation.js";
import { addressOf, change, readOff, state, toggled } from "../state.js";
import { told as inWords } from "../sentences.js";
import { kindOf, say } from "../words.js";

export function enter(place, params) {
  const index = Number(params.run ?? 0), run = state.runs[index] ?? state.runs[0];
  const problem = h("div", {});
  const only = latest();
  const land = landscape(run, index, {
    choose: (layer, channel) => change({ layer, channel, row: "", column: "", in: "", page: "" }),
    more: (layer) => { change({ layer, page: 1, row: "", column: "" }); below.querySelector(".sheet")?.scrollIntoView({ block: "center" }); },
    all: (every) => change({ all: every ? 1 : "" }),
    failed,
  });
  const below = h("section", { class: "card operation", "aria-label": say("inside.operation") });
  let opened = null, looks = null, key = "";

  // What the server would not tell of a part, above all of them; a network that is gone is asked anew
  function failed(trouble) {
    if (trouble.status === undefined) throw trouble; // ours
    if (!trouble.message) return; // main.js says that the server is gone
    problem.replaceChildren(h("p", { class: "problem", role: "alert" }, trouble.message, " ", h("button", { onclick: () => {
      key = "";
      opened?.close();
      opened = null;
      problem.replaceChildren();
      show(state.params);
    } }, say("inside.anew"))));
  }

  const picture = h("img", { class: "pixels", alt: "" });
  const named = h("p", { class: "named" }), answer = h("p", { class: "answered", role: "status" }), chips = h("div", { class: "chips" });
  const step = (by) => {
    const [split, place_] = (state.params.ref ?? "test:0").split(":");
    const total = run.splits[split] ?? run.splits.test ?? 1;
    const next = split === "up" ? 0 : (Number(place_) + by + total) % total;
    change({ ref: `${split === "up" ? "test" : split}:${next}`, row: "", column: "" });
  };
  const any = () => change({ ref: `test:${Math.floor(Math.random() * (run.splits.test ?? 1))}`, row: "", column: "" });

  const kept = run.kept ?? [], told_ = h("output", { for: "walk-epoch" });
  const slider = h("input", { type: "range", id: "walk-epoch", min: 0, max: Math.max(kept.length - 1, 0), oninput: () => change({ epoch: kept[Number(slider.value)] }, true) });
  const epochs = h("div", { class: "slider epochs", hidden: kept.length < 2 }, h("label", { for: "walk-epoch" }, say("inside.epoch")), told_, slider);

  place.append(
    h("div", { class: "lead" }, h("h1", {}, say("inside.title")), h("p", {}, say("inside.lead"))),
    h("div", { class: "subject" }, picture, h("div", { class: "told" }, named, answer),
      h("div", { class: "row" },
        h("button", { onclick: () => step(-1), "aria-label": say("inside.previous"), title: say("inside.previous") }, "←"),
        h("button", { onclick: () => step(1), "aria-label": say("inside.next"), title: say("inside.next") }, "→"),
        h("button", { onclick: any }, say("inside.any")),
        h("a", { class: "button", href: addressOf("try", {}) }, say(run.input.channels === 1 ? "inside.draw" : "inside.own")))),
    epochs, chips, problem, land.element,
    h("p", { class: "legend soft small" }, h("span", { class: "scale", "aria-hidden": "true" }), say("inside.scale")),
    below);
  const parts = [...place.children].filter((part) => part !== problem && part !== epochs && !part.classList.contains("lead"));

  function told(look, base, now) {
    const source = pictureOf(now.ref, index);
    if (!picture.src.endsWith(source)) picture.src = source;
    picture.alt = say("inside.input.alt");
    const label = look.label ?? null;
    const at = kept.includes(Number(now.epoch)) && now.epoch !== "" ? kept.indexOf(Number(now.epoch)) : kept.length - 1;
    slider.value = at;
    told_.textContent = now.epoch === undefined || now.epoch === "" ? say("training.newest") : now.epoch === "0" ? say("training.untrained") : now.epoch;
    named.textContent = now.ref.startsWith("up:") ? say("inside.yours") :
      say("inside.image", { ref: now.ref.replace(":", " "), label: label === null ? "?" : run.classes[label] });
    const sure = look.probabilities[look.predicted];
    answer.replaceChildren(h("strong", {}, run.classes[look.predicted]), ` ${percent(sure)} `,
      now.off ? h("span", { class: "soft" }, say("inside.before", { label: run.classes[base.predicted], p: percent(base.probabilities[base.predicted]) })) : "");
    const off = Object.entries(readOff(now.off)).flatMap(([layer, channels]) => channels.map((channel) => [layer, channel]));
    chips.replaceChildren(...(off.length ? [h("span", { class: "soft" }, say("inside.offs")),
      ...off.slice(0, 24).map(([layer, channel]) => h("button", { class: "chip", title: say("inside.on"),
        onclick: () => change({ off: toggled(now.off, layer, channel) }) },
        `${kindOf(run.layers.find((each) => each.name === layer)?.kind ?? "")} ${layer} · ${channel} ×`)),
      h("button", { onclick: () => change({ off: "" }) }, say("inside.allon"))] : []));
  }

  // Both looks are of one network; while that is trained, of the newest
  async function looked(now, extra) {
    const base = await ask("look", { ref: now.ref, ...extra }, !!run.training && !now.epoch);
    return [now.off ? await ask("look", { ref: now.ref, off: now.off, stamp: base.stamp, ...extra }) : base, base];
  }

  async function show(now) {
    now = { ...now, ref: now.ref || "test:0", off: now.off ?? "" };
    const there = run.data !== false || now.ref.startsWith("up:");
    for (const part of parts) part.hidden = !there;
    if (!there) {
      problem.replaceChildren(h("p", { class: "problem" }, say("data.gone", { why: inWords(run.why) })),
        h("a", { class: "button", href: addressOf("try", {}) }, say(run.input.channels === 1 ? "inside.draw" : "inside.own")));
      key = "";
      return;
    }
    land.spread(now.all === "1");
    if (!now.layer || !(["input", "softmax"].includes(now.layer) || run.layers.some((layer) => layer.name === now.layer))) {
      const first = run.layers.find((layer) => /conv/i.test(layer.kind)) ?? run.layers[0];
      now.layer = first.name;
      now.channel = "";
    }
    await within(problem, async () => {
      const extra = { ...(index ? { run: index } : {}), ...(now.epoch ? { epoch: now.epoch } : {}) };
      const asked = `${now.ref} ${now.off} ${now.epoch ?? ""}`;
      if (asked !== key) {
        looks = await only(looked(now, extra));
        key = asked;
        problem.replaceChildren();
        told(...looks, now);
      }
      const [look, base] = looks;
      extra.stamp = base.stamp; // what is asked from here on is that network's
      if (now.channel === undefined || now.channel === "") now.channel = now.layer === "softmax" ? base.predicted : base.layers.find((layer) => layer.name === now.layer)?.order[0] ?? 0;
      now.channel = Number(now.channel);
      land.show({ extra, ref: now.ref, off: now.off, look, base, layer: now.layer, channel: now.channel });
      const which = `${base.stamp} ${asked} ${now.layer} ${now.channel} ${now.in ?? ""} ${now.page ?? ""}`;
      if (opened?.which !== which) {
        const again = opened && opened.map === `${now.layer} ${now.channel}`; // the same map of another picture: no second show
        opened?.close();
        opened = { which, map: `${now.layer} ${now.channel}`, ...operation(below, { run, extra, now, look, base, still: again, failed }) };
      } else {
        opened.point(now);
      }
    });
  }

  show(params);
  return { show, close: () => { opened?.close(); land.close(); } };
}
