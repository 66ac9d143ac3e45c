package platform_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

func ask(handler http.Handler, method, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(method, path, nil))
	return recorder
}

func up(context.Context) error { return nil }
func down(context.Context) error {
	return errors.New("dial redis.internal:6379: password hunter2 refused")
}

// hangs honours its context, and fails with it.
func hangs(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// late does not look at its context, and succeeds in the end.
func late(context.Context) error { time.Sleep(time.Minute); return nil }

func TestReadiness(t *testing.T) { // pitfall 34
	for name, row := range map[string]struct {
		checks platform.Checks
		status int
		want   map[string]string
	}{
		"all up":     {platform.Checks{"redis": up, "objects": up}, 200, map[string]string{"redis": "ok", "objects": "ok"}},
		"one down":   {platform.Checks{"redis": down, "objects": up}, 503, map[string]string{"redis": "down", "objects": "ok"}},
		"one hangs":  {platform.Checks{"redis": up, "objects": hangs}, 503, map[string]string{"redis": "ok", "objects": "down"}},
		"one late":   {platform.Checks{"redis": late, "objects": up}, 503, map[string]string{"redis": "down", "objects": "ok"}},
		"all down":   {platform.Checks{"redis": down, "objects": hangs}, 503, map[string]string{"redis": "down", "objects": "down"}},
		"no parties": {nil, 200, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := platform.Health(row.checks, platform.NewRegistry())
				ready := ask(handler, http.MethodGet, "/readyz")
				var got map[string]string
				if err := json.Unmarshal(ready.Body.Bytes(), &got); err != nil || !maps.Equal(got, row.want) || ready.Code != row.status {
					t.Errorf("%d %s, want %d %v", ready.Code, ready.Body, row.status, row.want)
				}
				if text := ready.Body.String(); strings.Contains(text, "hunter2") || strings.Contains(text, "internal") {
					t.Errorf("readiness tells details: %s", text)
				}
				if live := ask(handler, http.MethodGet, "/livez"); live.Code != http.StatusOK {
					t.Errorf("livez says %d: a process whose dependencies are down is not to be killed", live.Code)
				}
			})
		})
	}
}

// However many ask, and however often, the dependencies are asked once a second; then they are asked again, whatever
// the last report was.
func TestReadinessIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, broken := 0, false
		handler := platform.Probes(platform.Checks{"redis": func(ctx context.Context) error {
			asked++
			time.Sleep(time.Second)
			if broken {
				return errors.New("down")
			}
			return ctx.Err()
		}}, time.Now)
		round := func(want, total int) {
			t.Helper()
			var callers sync.WaitGroup
			for range 20 {
				callers.Go(func() {
					if got := ask(handler, http.MethodGet, "/readyz"); got.Code != want {
						t.Errorf("%d %s, want %d", got.Code, got.Body, want)
					}
				})
			}
			callers.Wait()
			if asked != total {
				t.Errorf("asked %d times, want %d", asked, total)
			}
		}
		round(http.StatusOK, 1)
		broken = true
		time.Sleep(time.Second - time.Nanosecond)
		round(http.StatusOK, 1)
		time.Sleep(time.Nanosecond)
		round(http.StatusServiceUnavailable, 2)
		broken = false
		round(http.StatusServiceUnavailable, 2)
		time.Sleep(time.Second)
		round(http.StatusOK, 3)
	})
}

// A caller that hangs up neither spoils the report for the others nor waits for it.
func TestReadinessOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := platform.Probes(platform.Checks{"redis": func(ctx context.Context) error {
			time.Sleep(2 * time.Second)
			return ctx.Err()
		}}, time.Now)
		ctx, hangUp := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for range 2 {
			callers.Go(func() {
				handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/readyz", nil))
			})
		}
		synctest.Wait()
		hangUp()
		if got := ask(handler, http.MethodGet, "/readyz"); got.Code != http.StatusOK {
			t.Errorf("%d %s", got.Code, got.Body)
		}
		callers.Wait()
	})
}

// What may be reached from outside has neither figures nor profiles.
func TestProbesServeNothingElse(t *testing.T) {
	handler := platform.Probes(nil, time.Now)
	for path, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/metrics": 404, "/debug/pprof/": 404, "/debug/pprof/profile": 404, "/": 404,
	} {
		if got := ask(handler, http.MethodGet, path); got.Code != want {
			t.Errorf("%s: %d, want %d", path, got.Code, want)
		}
	}
}

func TestHealthServesMetricsAndNothingElse(t *testing.T) {
	handler := platform.Health(nil, platform.NewRegistry())
	for _, row := range []struct {
		method, path string
		status       int
		holds        string
	}{
		{http.MethodGet, "/metrics", 200, "go_goroutines"},
		{http.MethodGet, "/", 404, ""},
		{http.MethodPost, "/readyz", 405, ""},
		{http.MethodDelete, "/livez", 405, ""},
	} {
		got := ask(handler, row.method, row.path)
		if got.Code != row.status || !strings.Contains(got.Body.String(), row.holds) {
			t.Errorf("%s %s: %d %s", row.method, row.path, got.Code, got.Body)
		}
	}
}
