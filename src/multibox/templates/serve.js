// Sends pictures to the service, and shows what it detects.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const [results, panel, slider, status, legend] = ["results", "panel", "threshold", "status", "legend"].map(byId);
  const output = document.querySelector("output");
  const classes = new Map(data.classes.map((each) => [each.name, { ...each, shown: true, count: 0 }]));
  // Detections with lower scores are not asked for.
  const lowest = Math.min(0.05, data.threshold);
  const entries = [];
  let [working, queue] = [0, []];

  const make = (kind, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(kind), properties);
    made.append(...children);
    return made;
  };
  const swatch = (name) => {
    const made = make("i");
    made.style.background = classes.get(name).colour;
    return made;
  };
  const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const wait = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });

  // Returns the answer to a picture. The service may be busy for a while.
  async function ask(file) {
    if (file.size > data.maxBytes) {
      throw new Error(`has ${(file.size / 2 ** 20).toFixed(1)} MiB, but the limit is ${data.maxBytes / 2 ** 20} MiB. Scale it down.`);
    }
    for (let attempt = 0; ; attempt += 1) {
      let response;
      let body;
      try {
        response = await fetch(`detect?threshold=${lowest}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
        body = await response.json();
      } catch {
        throw new Error("was not detected, because the service does not answer. Check that it still runs.");
      }
      if (response.ok) return body;
      if (response.status !== 503 || attempt === 20) {
        const { reason, remedy } = body.error;
        throw new Error(`was refused: ${reason}.${remedy ? ` ${remedy}.` : ""}`);
      }
      await wait(Number(response.headers.get("Retry-After")) || 1);
    }
  }

  function focus(entry, index) {
    entry.picture.classList.toggle("dimmed", index !== null);
    entry.parts.forEach(({ box, row }, number) => {
      box.classList.toggle("focus", number === index);
      row.classList.toggle("focus", number === index);
    });
  }

  function draw(entry) {
    const { width, height, detections } = entry.answer;
    const body = make("tbody");
    entry.parts = detections.map((found, index) => {
      const [x0, y0, x1, y1] = found.box_px;
      const box = make("div", { className: "box" }, make("span", { textContent: `${found.name} ${found.score.toFixed(2)}` }));
      box.style.setProperty("--colour", classes.get(found.name).colour);
      box.style.color = classes.get(found.name).text;
      for (const [side, share] of Object.entries({ left: x0 / width, top: y0 / height, width: (x1 - x0) / width, height: (y1 - y0) / height })) {
        box.style[side] = `${100 * share}%`;
      }
      box.classList.toggle("low", y0 / height < 0.06);
      box.classList.toggle("right", x0 / width > 0.7);
      const button = make("button", { type: "button", className: "open", textContent: found.name });
      const row = make("tr", {}, make("th", { scope: "row", className: "name" }, swatch(found.name), button), make("td", { textContent: found.score.toFixed(3) }));
      row.append(...[x0, y0, x1 - x0, y1 - y0].map((side) => make("td", { textContent: Math.round(side) })));
      for (const part of [box, row]) {
        part.addEventListener("mouseenter", () => focus(entry, index));
        part.addEventListener("mouseleave", () => focus(entry, null));
      }
      button.addEventListener("focus", () => focus(entry, index));
      button.addEventListener("blur", () => focus(entry, null));
      body.append(row);
      return { found, box, row };
    });
    // The best on top.
    entry.picture.append(...entry.parts.map(({ box }) => box).reverse());
    const header = ["Class", "Score", "x", "y", "Width", "Height"].map((text, column) => make("th", { scope: "col", className: column ? "" : "name", textContent: text }));
    entry.table.replaceChildren(make("thead", {}, make("tr", {}, ...header)), body);
  }

  const isShown = ({ name, score }) => score >= Number(slider.value) && classes.get(name).shown;

  function refresh() {
    output.textContent = Number(slider.value).toFixed(2);
    for (const each of classes.values()) each.count = 0;
    let [pictures, objects] = [0, 0];
    for (const entry of entries) {
      if (!entry.parts) continue;
      let shown = 0;
      for (const { found, box, row } of entry.parts) {
        const visible = isShown(found);
        if (found.score >= Number(slider.value)) classes.get(found.name).count += 1;
        box.hidden = row.hidden = !visible;
        shown += visible;
      }
      entry.scroll.hidden = !shown;
      entry.note.textContent = `${shown ? counted(shown, "object") : "No object with this score"} · ${entry.answer.width} × ${entry.answer.height} pixels · ${Math.round(entry.answer.milliseconds.total)} ms`;
      pictures += 1;
      objects += shown;
    }
    for (const button of legend.children) {
      const each = classes.get(button.dataset.name);
      button.lastChild.textContent = ` ${each.count}`;
      // Of many classes, those without an object would hide the others.
      button.hidden = classes.size > 6 && !each.count && each.shown;
    }
    panel.hidden = !pictures;
    byId("download").disabled = !pictures;
    const left = working + queue.length;
    status.textContent = [
      ...(pictures ? [`${counted(objects, "object")} in ${counted(pictures, "picture")}`] : []),
      ...(left ? [`${counted(left, "picture")} in work`] : []),
    ].join(" · ");
  }

  // The pixels as they are stored count, as in training. Photographs may be meant to be turned.
  function offerTurning(entry, file, image) {
    const turned = image.naturalWidth !== entry.answer.width || image.naturalHeight !== entry.answer.height;
    if (!turned || !image.naturalWidth) return;
    const button = make("button", { type: "button", textContent: "Turn it upright and detect again" });
    button.addEventListener("click", async () => {
      const bitmap = await createImageBitmap(file);
      const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      canvas.toBlob((blob) => {
        remove(entry);
        add([new File([blob], file.name, { type: blob.type })]);
      }, "image/jpeg", 0.95);
    });
    entry.article.insertBefore(make("p", {}, "This photograph is stored sideways, and detected as it is stored. ", button), entry.views);
  }

  async function detect(entry) {
    const { file } = entry;
    const image = make("img", { alt: `Picture ${file.name} with boxes around the detected objects`, src: URL.createObjectURL(file) });
    entry.image = image;
    const loaded = image.decode().then(() => true, () => false);
    try {
      entry.answer = await ask(file);
    } catch (error) {
      entry.note.textContent = "";
      entry.article.append(make("p", { className: "error", role: "alert", textContent: `${file.name} ${error.message}` }));
      return;
    }
    if (!entries.includes(entry)) return;
    const { width, height } = entry.answer;
    entry.picture = make("div", { className: "canvas" });
    if (await loaded) {
      [image.width, image.height] = [width, height];
    } else {
      // A drawing of its size stands for a picture that the browser cannot show, such as TIFF.
      image.src = `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"/>`)}`;
      entry.article.append(make("p", { className: "muted", textContent: "This browser cannot show pictures of this format. The boxes are drawn without it." }));
    }
    entry.picture.append(image);
    entry.table = make("table");
    entry.scroll = make("div", { className: "scroll", tabIndex: 0, ariaLabel: `Objects in ${file.name}` }, entry.table);
    entry.scroll.setAttribute("role", "region");
    entry.views = make("div", { className: "views" }, entry.picture, entry.scroll);
    entry.article.append(entry.views);
    draw(entry);
    offerTurning(entry, file, image);
  }

  async function work() {
    // A few at once, so that the service can compute them together.
    while (queue.length && working < 4) {
      const entry = queue.shift();
      working += 1;
      detect(entry).finally(() => {
        working -= 1;
        refresh();
        work();
      });
    }
    refresh();
  }

  function add(files) {
    for (const file of files) {
      const note = make("p", { className: "muted", textContent: "In work" });
      const article = make("article", {}, make("h2", { textContent: file.name }), note);
      const entry = { file, note, article };
      entries.push(entry);
      queue.push(entry);
      results.append(article);
    }
    work();
  }

  function remove(entry) {
    entries.splice(entries.indexOf(entry), 1);
    URL.revokeObjectURL(entry.image?.src);
    entry.article.remove();
  }

  for (const each of classes.values()) {
    const button = make("button", { type: "button" }, swatch(each.name), each.name, make("span"));
    button.dataset.name = each.name;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      each.shown = !each.shown;
      button.setAttribute("aria-pressed", String(each.shown));
      refresh();
    });
    legend.append(button);
  }
  slider.min = lowest;
  slider.value = data.threshold;
  slider.addEventListener("input", refresh);
  byId("files").addEventListener("change", (event) => {
    add(event.target.files);
    // The same file can be chosen again.
    event.target.value = "";
  });
  byId("clear").addEventListener("click", () => {
    queue = [];
    for (const entry of [...entries]) remove(entry);
    refresh();
    byId("files").focus();
  });
  byId("download").addEventListener("click", () => {
    const content = entries.filter((entry) => entry.answer).map(({ file, answer }) => ({
      image: file.name, width: answer.width, height: answer.height, threshold: Number(slider.value),
      detections: answer.detections.filter(isShown), model: answer.model,
    }));
    const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
    make("a", { href: address, download: "detections.json" }).click();
    URL.revokeObjectURL(address);
  });
  const drop = byId("drop");
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => add(event.clipboardData.files));
  refresh();
})();
