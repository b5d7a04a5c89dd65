// Tables that can be sorted, and numbers that open their pictures.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("−", "-"));

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const numeric = column > 0;
        const up = header.getAttribute("aria-sort") === (numeric ? "descending" : "ascending")
          ? numeric : !numeric;
        const key = (row) => row.cells[column].textContent.trim();
        const rows = [...body.rows].sort((a, b) => {
          if (!numeric) return (up ? 1 : -1) * key(a).localeCompare(key(b));
          const [x, y] = [number(key(a)), number(key(b))];
          // Cells without a number come last in both directions.
          if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
          return up ? x - y : y - x;
        });
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...rows);
      });
    });
  }

  const namespace = document.querySelector("svg").namespaceURI;
  const shape = (kind, attributes) => {
    const made = document.createElementNS(namespace, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  function drawn(picture, description) {
    const frame = document.createElement("div");
    frame.className = "picture";
    const image = document.createElement("img");
    image.src = `data:image/webp;base64,${picture.image}`;
    image.alt = description;
    image.width = picture.width;
    image.height = picture.height;
    const overlay = shape("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, "aria-hidden": "true" });
    // Boxes in focus lie on top.
    for (const [x0, y0, x1, y1, kind, focus, text] of [...picture.boxes].sort((a, b) => a[5] - b[5])) {
      const place = { x: x0, y: y0, width: Math.max(1, x1 - x0), height: Math.max(1, y1 - y0) };
      const more = focus ? " focus" : "";
      const box = shape("rect", { ...place, class: kind + more });
      const title = shape("title", {});
      title.textContent = text;
      box.append(title);
      overlay.append(shape("rect", { ...place, class: `halo${more}` }), box);
    }
    frame.append(image, overlay);
    return frame;
  }
  function tile(picture, description, id) {
    const item = document.createElement("li");
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.append(description);
    if (id) {
      const name = document.createElement("small");
      name.textContent = id;
      caption.append(document.createElement("br"), name);
    }
    figure.append(...(picture ? [drawn(picture, id ? `${description}, in ${id}` : description)] : []), caption);
    item.append(figure);
    return item;
  }
  const entries = (gallery) => gallery.entries.map(([index, id, text]) => tile(data.pictures[index], text, id));

  // Galleries that are part of the page.
  for (const list of document.querySelectorAll("ul[data-show]")) {
    const gallery = data.galleries[list.dataset.show];
    if (gallery) list.append(...entries({ entries: gallery.entries.slice(0, +list.dataset.most) }));
  }
  for (const list of document.querySelectorAll("ul[data-samples]")) {
    list.append(...data.samples.map((sample, index) => tile(sample, `Sample ${index}`)));
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

  const dialog = document.getElementById("pictures");
  const title = document.getElementById("pictures-title");
  const note = document.getElementById("pictures-note");
  const list = dialog.querySelector("ul");
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-gallery]");
    if (!button) return;
    const gallery = data.galleries[button.dataset.gallery];
    title.textContent = `${gallery.title}: ${gallery.count.toLocaleString("en")}`;
    const shown = gallery.entries.filter(([index]) => index >= 0);
    const rest = gallery.entries.filter(([index]) => index < 0).map(([, id, text]) => `${text} in ${id}`);
    note.textContent = (gallery.count > shown.length ? `${shown.length} of them are shown.` : "")
      + (rest.length ? ` The page has no room for the pictures of: ${rest.join("; ")}.` : "");
    list.replaceChildren(...entries({ entries: shown }));
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
})();
