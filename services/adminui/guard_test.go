package adminui

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestHosts(t *testing.T) {
	g := newGuard([]string{"Scheduler.example"}, time.Now)
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:9090": true, "127.0.0.1:9090": true, "[::1]:9090": true, "::1": true, "10.1.2.3": true,
		"scheduler.example:9090": true, "SCHEDULER.EXAMPLE": true,
		"": false, "rebound.example": false, "rebound.example:9090": false, "localhost.rebound.example": false,
		"127.0.0.1.rebound.example": false, "x-scheduler.example": false, "[::1": true,
	} {
		if got := g.accepts(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

// A form is valid for an hour, for one browser and one action, and only in the process that rendered it.
func TestForms(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	g, other := newGuard(nil, clock), newGuard(nil, clock)
	const step = Path + "jobs/x/cancel"
	good := g.token("browser", step)
	ours := http.Header{"Origin": {"http://127.0.0.1:9090"}, "Cookie": {sessionCookie + "=browser"}}
	with := func(name, value string) http.Header {
		header := ours.Clone()
		header.Set(name, value)
		return header
	}
	without := ours.Clone()
	without.Del("Cookie")
	for name, row := range map[string]struct {
		token  string
		header http.Header
		later  time.Duration
		want   error
	}{
		"valid":                    {good, ours, 0, nil},
		"with Sec-Fetch-Site":      {good, with("Sec-Fetch-Site", "same-origin"), 0, nil},
		"within the hour":          {good, ours, formLife, nil},
		"after an hour":            {good, ours, formLife + time.Second, errStale},
		"before its time":          {good, ours, -time.Second, errStale},
		"of another process":       {other.token("browser", step), ours, 0, errStale},
		"for another step":         {g.token("browser", Path+"jobs/y/cancel"), ours, 0, errStale},
		"for another browser":      {g.token("another", step), ours, 0, errStale},
		"that another browser has": {good, with("Cookie", sessionCookie+"=another"), 0, errStale},
		"without a cookie":         {good, without, 0, errForeign},
		"without a token":          {"", ours, 0, errForeign},
		"cut short":                {good[:len(good)-4], ours, 0, errForeign},
		"changed":                  {"A" + strings.Repeat("B", len(good)-1), ours, 0, errStale},
		"of another site":          {good, with("Origin", "https://elsewhere.example"), 0, errForeign},
		"of no site at all":        {good, with("Origin", "null"), 0, errForeign},
		"cross-site":               {good, with("Sec-Fetch-Site", "cross-site"), 0, errForeign},
		"of another port":          {good, with("Origin", "http://127.0.0.1:9091"), 0, errForeign},
	} {
		now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC).Add(row.later)
		body := strings.NewReader(url.Values{"token": {row.token}}.Encode())
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:9090"+step, body)
		r.Header = row.header.Clone()
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if got := g.checkForm(r); got != row.want { //nolint:errorlint // these very values
			t.Errorf("a form %s: %v, want %v", name, got, row.want)
		}
	}
	// Parameters in the URL are not a form.
	now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:9090"+step+"?token="+good, nil)
	r.Header = ours
	if g.checkForm(r) == nil {
		t.Error("a token in the URL was accepted")
	}
}
