//go:build long

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// browser is one tab of a headless Chromium with a new profile.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// openBrowser starts a Chromium. It ends with the test.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // tests may run as root
		chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
	)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)
	check.Must(t, chromedp.Do(ctx)) // starts it; a context with a timeout would stop it
	return &browser{t: t, ctx: ctx}
}

// ask runs an action within a minute and returns its result.
func ask[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		shows, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText"))
		b.t.Fatalf("browser: %v\nIt shows %s", err, shows)
	}
	return value
}

// eval evaluates a script in the page.
func eval[T any](b *browser, script string) T {
	b.t.Helper()
	return ask(b, chromedp.Evaluate[T](script))
}

// desktop, wallboard and phone set the size of the window.
func (b *browser) desktop()   { b.t.Helper(); ask(b, chromedp.EmulateViewport(1280, 800)) }
func (b *browser) wallboard() { b.t.Helper(); ask(b, chromedp.EmulateViewport(1920, 1080)) }
func (b *browser) phone() {
	b.t.Helper()
	ask(b, chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(2)))
}

// prefer sets the color scheme of the system: light or dark.
func (b *browser) prefer(scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	check.Must(b.t, err)
}

// scripts enables or disables scripts.
func (b *browser) scripts(on bool) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
	check.Must(b.t, err)
}

func (b *browser) open(url string) { b.t.Helper(); ask(b, chromedp.Navigate(url)) }

// follow clicks the element of the first selector and waits until that of the second is visible. It finds and clicks in one
// step, because live parts of the page may be replaced at any time. A covered element is a failure.
func (b *browser) follow(press, shows string) {
	b.t.Helper()
	trouble := eval[string](b, `(() => {
		const target = document.querySelector(`+strconv.Quote(press)+`)
		if (!target) { return "is not there" }
		target.scrollIntoView({block: "center", behavior: "instant"})
		const box = target.getBoundingClientRect()
		if (!target.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2))) { return "is covered" }
		target.click()
		return ""
	})()`)
	if trouble != "" {
		b.t.Fatalf("%s %s on\n%s", press, trouble, b.text("body"))
	}
	check.Eventually(b.t, time.Minute, "the page shows "+shows, func() bool {
		seen, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](
			"document.querySelector("+strconv.Quote(shows)+")?.checkVisibility() === true"))
		return err == nil && seen // an error while the page navigates
	})
}

// text is the text of the first element of the selector, or "".
func (b *browser) text(selector string) string {
	b.t.Helper()
	return eval[string](b, "document.querySelector("+strconv.Quote(selector)+")?.innerText ?? ''")
}

// fill types text into a field.
func (b *browser) fill(selector, text string) {
	b.t.Helper()
	ask(b, chromedp.SendKeys(chromedp.CSS(selector), text))
}

// picture saves the whole page as a PNG, screen its visible part, in the folder SLUICE_SCREENSHOTS or in a temporary one.
func (b *browser) picture(name string) {
	b.t.Helper()
	b.keep(name, ask(b, chromedp.FullScreenshot(100)))
}
func (b *browser) screen(name string) {
	b.t.Helper()
	b.keep(name, ask(b, chromedp.CaptureScreenshot()))
}

func (b *browser) keep(name string, png []byte) {
	b.t.Helper()
	dir := os.Getenv("SLUICE_SCREENSHOTS")
	if dir == "" {
		dir = b.t.TempDir()
	}
	if len(png) == 0 {
		b.t.Fatalf("%s: the screenshot is empty", name)
	}
	check.Must(b.t, os.WriteFile(filepath.Join(dir, name), png, 0o644))
}
