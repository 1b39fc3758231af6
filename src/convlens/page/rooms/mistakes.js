// Mistakes: the confusion matrix, the images behind each of its cells, and a list of labels that you think are wrong.

import { ask, pictureOf } from "../fetching.js";
import { count, h, percent, roving, within } from "../drawing/elements.js";
import { download } from "../drawing/saving.js";
import { addressOf, change, remembered, state } from "../state.js";
import { told } from "../sentences.js";
import { say } from "../words.js";

const MANY = 30; // classes from which on the matrix is told by its worst cells

export function enter(place, params) {
  const index = Number(params.run ?? 0), run = state.runs[index] ?? state.runs[0];
  const key = `doubted.${run.identity}`; // of this data and this network, whatever another run is called
  let doubted = remembered.get(key, {}); // ref -> {label, predicted}
  const matrix = h("div", { class: "matrix-place" }), gallery = h("ul", { class: "gallery" }), title = h("h2", { "aria-live": "polite" });
  const problem = h("div", {}), pager = h("div", { class: "row" }), list = h("div", {});

  const select = (name, options) => {
    const element = h("select", { id: `f-${name}`, onchange: () => change({ [name]: element.value, page: "" }) },
      ...options.map(([value, text]) => h("option", { value }, text)));
    return { element, label: h("label", { for: `f-${name}`, class: "filter" }, h("span", {}, say(`mistakes.${name}`)), element) };
  };
  const classes = [["", say("mistakes.any")], ...run.classes.map((name, k) => [String(k), name])];
  const filters = { class: select("class", classes), predicted: select("predicted", classes),
    sort: select("sort", ["sure", "unsure", "index"].map((each) => [each, say(`mistakes.${each}`)])),
    shown: select("shown", ["wrong", "all", "doubted"].map((each) => [each, say(`mistakes.${each}`)])) };

  place.append(h("div", { class: "lead" }, h("h1", {}, say("mistakes.title")), h("p", {}, say("mistakes.lead"))),
    h("div", { class: "mistakes" },
      h("section", { class: "card", "aria-label": say("mistakes.matrix") }, h("h2", {}, say("mistakes.matrix")), matrix, h("p", { class: "soft small" }, say("mistakes.matrix.what"))),
      h("section", { class: "card", "aria-label": say("mistakes.images") }, title,
        h("div", { class: "filters" }, ...Object.values(filters).map((each) => each.label)),
        run.data === false ? h("p", { class: "problem" }, say("data.gone", { why: told(run.why) })) : "", problem, gallery, pager, list)));

  function drawMatrix({ classes: names, counts }) {
    const off = counts.map((row, i) => row.map((n, j) => (i === j ? 0 : n)));
    const most = Math.max(...off.flat(), 1);
    if (names.length > MANY) {
      const worst = off.flatMap((row, i) => row.map((n, j) => [n, i, j])).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 20);
      matrix.replaceChildren(h("ol", { class: "worst" }, ...worst.map(([n, i, j]) => h("li", {},
        h("button", { class: "plain", onclick: () => change({ class: i, predicted: j, page: "", shown: "" }) }, say("mistakes.taken", { label: names[i], predicted: names[j] }), h("b", {}, count(n)))))));
      return;
    }
    const table = h("table", { class: `matrix${names.length > 12 ? " tight" : ""}${names.some((name) => name.length > 3) ? " named" : ""}` },
      h("caption", { class: "unseen" }, say("mistakes.matrix.alt")),
      h("thead", {}, h("tr", {}, h("td", {}), ...names.map((name) => h("th", { scope: "col", title: name }, h("span", {}, name))))),
      h("tbody", {}, ...counts.map((row, i) => h("tr", {}, h("th", { scope: "row", title: names[i] }, h("span", {}, names[i])), ...row.map((n, j) => {
        const share = i === j ? n / Math.max(row.reduce((a, b) => a + b, 0), 1) : n / most;
        const button = h("button", { class: i === j ? "hit" : n ? "miss" : "none", data: { cell: `${i},${j}` }, title: say("mistakes.cell", { count: n, label: names[i], predicted: names[j] }),
          "aria-label": say("mistakes.cell", { count: n, label: names[i], predicted: names[j] }), "aria-pressed": "false",
          onclick: () => change({ class: i, predicted: j, page: "", shown: i === j ? "all" : "" }) }, n ? String(n) : "");
        if (i !== j && n) { button.style.setProperty("--share", `${Math.round(18 + 82 * Math.sqrt(share))}%`); if (share > 0.3) button.classList.add("strong"); }
        return h("td", {}, button);
      })))));
    matrix.replaceChildren(h("p", { class: "axis-name soft small" }, say("mistakes.axes")), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": say("mistakes.matrix.alt") }, table));
    roving(table, "button");
    table.addEventListener("keydown", (event) => { // up and down go by rows
      const step = { ArrowDown: names.length, ArrowUp: -names.length }[event.key];
      if (!step) return;
      const all = [...table.querySelectorAll("button")], at = all.indexOf(document.activeElement);
      event.preventDefault();
      event.stopImmediatePropagation();
      all[at + step]?.focus();
    }, true);
  }

  const mark = (image, button) => {
    if (doubted[image.ref]) delete doubted[image.ref]; else doubted[image.ref] = { label: image.label, predicted: image.predicted, file: image.file ?? "" };
    remembered.set(key, doubted);
    button.setAttribute("aria-pressed", String(!!doubted[image.ref]));
    drawDoubted();
  };

  function drawDoubted() {
    const rows = Object.entries(doubted);
    const plain = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text); // no formula, where a spreadsheet opens it
    const quoted = (text) => `"${plain(String(text)).replaceAll('"', '""')}"`;
    list.replaceChildren(...(rows.length ? [h("div", { class: "row doubted" }, h("p", {}, say("mistakes.marked", { count: rows.length })),
      h("button", { class: "first", onclick: () => download(new Blob([`split,index,file,label,predicted\n${rows.map(([ref, { label, predicted, file }]) =>
        [...ref.split(":"), file ? quoted(file) : "", quoted(run.classes[label]), predicted === null ? "" : quoted(run.classes[predicted])].join(",")).join("\n")}\n`], { type: "text/csv" }), "doubted-labels.csv") }, say("mistakes.export")))] : []));
  }

  function card(image) {
    const button = h("button", { class: "doubt-it", "aria-pressed": String(!!doubted[image.ref]), onclick: () => mark(image, button) }, say("mistakes.doubt"));
    const right = image.label === image.predicted;
    return h("li", {},
      run.data === false ? h("p", {}, h("b", {}, image.ref)) : h("a", { href: addressOf("inside", { ref: image.ref, ...(index ? { run: index } : {}) }), "aria-label": say("mistakes.open", { ref: image.ref }) },
        h("img", { class: "pixels", loading: "lazy", src: pictureOf(image.ref, index), alt: say("image.alt", { ref: image.ref, label: run.classes[image.label] }) })),
      h("p", {}, h("b", {}, run.classes[image.predicted ?? image.label]), image.probability === null ? "" : h("span", { class: "soft" }, ` ${percent(image.probability)}`)),
      h("p", { class: "soft" }, image.predicted === null || right ? say("mistakes.isright") : say("mistakes.truly", { label: run.classes[image.label] })), button);
  }

  async function show(now) {
    const shown = now.shown || "wrong", sort = now.sort || "sure";
    filters.class.element.value = now.class ?? "";
    filters.predicted.element.value = now.predicted ?? "";
    filters.sort.element.value = sort;
    filters.shown.element.value = shown;
    matrix.querySelectorAll("button[data-cell]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.cell === `${now.class ?? ""},${now.predicted ?? ""}`)));
    const page = Number(now.page || 0);
    await within(problem, async () => {
      const pair = now.class !== undefined && now.class !== "" && now.class === now.predicted;
      const found = shown === "doubted" ? { total: Object.keys(doubted).length, images: Object.entries(doubted).map(([ref, each]) => ({ ref, probability: null, ...each })) } :
        await ask("images", { split: "test", class: now.class, predicted: now.predicted, sort, wrong: shown === "wrong" && !pair ? 1 : "", page: page || "", ...(index ? { run: index } : {}) });
      problem.replaceChildren();
      title.textContent = say(shown === "wrong" && !pair ? "mistakes.found" : "mistakes.images.found", { count: count(found.total) });
      gallery.replaceChildren(...found.images.map(card));
      const pages = Math.ceil(found.total / 60), held = pager.contains(document.activeElement) ? document.activeElement.dataset.keep : "";
      pager.replaceChildren(...(pages > 1 && shown !== "doubted" ? [
        h("button", { data: { keep: "back" }, disabled: page === 0, "aria-label": say("sheet.back"), onclick: () => change({ page: page - 1 || "" }) }, "←"),
        h("span", { class: "soft" }, say("sheet.page", { page: page + 1, pages })),
        h("button", { data: { keep: "on" }, disabled: page + 1 >= pages, "aria-label": say("sheet.on"), onclick: () => change({ page: page + 1 }) }, "→")] : []));
      if (held) (pager.querySelector(`[data-keep="${held}"]:enabled`) ?? pager.querySelector("button:enabled"))?.focus(); // whose page was the last
      if (!found.images.length) gallery.replaceChildren(h("li", { class: "soft none" }, say("mistakes.none")));
    });
  }

  drawDoubted();
  within(matrix, async () => { drawMatrix(await ask("confusion", index ? { run: index } : {})); show(state.params); });
  show(params);
  return { show };
}
