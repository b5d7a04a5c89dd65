// The switch between the light and the dark scheme. At first the page follows the system.
(() => {
  const button = document.querySelector(".theme");
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = {
    read() {
      // Some browsers refuse storage to files.
      try { return localStorage.getItem("multibox-theme"); } catch { return null; }
    },
    write(value) {
      try { localStorage.setItem("multibox-theme", value); } catch { /* It lasts until a reload. */ }
    },
  };
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const show = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    button.textContent = current() === "dark" ? "Light scheme" : "Dark scheme";
    document.dispatchEvent(new Event("schemechange"));
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    show(current() === "dark" ? "light" : "dark");
    stored.write(current());
  });
  dark.addEventListener("change", () => show());
  show(stored.read());
  // Paper is white.
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; show("light"); });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    show(before);
  });
})();
