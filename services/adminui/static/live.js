// Fetches the page every two seconds and replaces its live parts. Without this script the page reloads itself (see the
// noscript element).
"use strict";

(() => {
	const every = 2000;
	const parts = document.querySelectorAll("[data-live]");
	if (parts.length === 0) {
		return;
	}

	const status = document.getElementById("updated");
	let paused = false;
	const button = document.getElementById("updates");
	button.hidden = false;
	button.addEventListener("click", () => {
		paused = !paused;
		button.textContent = paused ? "Resume updates" : "Pause updates";
		status.textContent = paused ? "not updated" : "live";
	});

	// Keeps the focus on a link when its part is replaced.
	const replace = (part, next) => {
		const link = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
		part.replaceChildren(...next.childNodes);
		if (link !== null) {
			part.querySelector(`a[href="${CSS.escape(link)}"]`)?.focus({ preventScroll: true });
		}
	};

	const update = async () => {
		if (paused || document.hidden) {
			return;
		}
		try {
			const answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
			if (answer.status === 404) { // the job was purged
				location.reload();
				return;
			}
			if (!answer.ok) {
				throw new Error(String(answer.status));
			}
			const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
			for (const part of parts) {
				const next = fresh.getElementById(part.id);
				if (next && !paused && part.innerHTML !== next.innerHTML) {
					replace(part, next);
				}
			}
			status.textContent = paused ? "not updated" : "live";
		} catch {
			status.textContent = "no response: the page is out of date";
		}
	};

	const round = async () => {
		await update();
		setTimeout(round, every);
	};
	setTimeout(round, every);
})();
