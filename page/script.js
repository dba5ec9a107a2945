addEventListener("click", event => {
    event.target.closest("#tier-alert button")?.parentElement.remove();
    const map = event.target.closest(".tier-map");
    if (!map || map.closest("dialog")) return;
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-label", map.querySelector("img").alt);
    dialog.append(map.closest("figure").cloneNode(true));
    dialog.querySelector("figcaption").prepend(map.closest("section").querySelector("h3").cloneNode(true));
    const button = dialog.querySelector("button");
    button.setAttribute("aria-label", "Close");
    button.textContent = "×";
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    map.closest(".tier-root").append(dialog);
    dialog.showModal();
});
// Gradio's radio buttons have no group: no arrow keys, and no name that a screen reader would say.
addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || event.target.type !== "radio") return;
    const buttons = [...event.target.closest("fieldset").querySelectorAll("[type=radio]")];
    const next = buttons.at((buttons.indexOf(event.target) + step) % buttons.length);
    next.focus();
    next.click();
    event.preventDefault();
});
addEventListener("focusin", event => {
    const group = event.target.closest?.("fieldset");
    const name = group?.querySelector("[data-testid=block-info]");
    if (name) group.setAttribute("aria-label", name.textContent.trim());
});
