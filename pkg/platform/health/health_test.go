package health_test

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

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(handler http.Handler, method, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(method, path, nil))
	return recorder
}

func up(context.Context) error { return nil }
func down(context.Context) error {
	return errors.New("dial redis.internal:6379: password hunter2 refused")
}

// hangs fails when its context ends.
func hangs(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// late ignores its context and succeeds.
func late(context.Context) error { time.Sleep(time.Minute); return nil }

func TestReadiness(t *testing.T) { // pitfall 34
	for name, row := range map[string]struct {
		checks health.Checks
		status int
		want   map[string]string
	}{
		"all up":    {health.Checks{"redis": up, "objects": up}, 200, map[string]string{"redis": "ok", "objects": "ok"}},
		"one down":  {health.Checks{"redis": down, "objects": up}, 503, map[string]string{"redis": "down", "objects": "ok"}},
		"one hangs": {health.Checks{"redis": up, "objects": hangs}, 503, map[string]string{"redis": "ok", "objects": "down"}},
		"one late":  {health.Checks{"redis": late, "objects": up}, 503, map[string]string{"redis": "down", "objects": "ok"}},
		"all down":  {health.Checks{"redis": down, "objects": hangs}, 503, map[string]string{"redis": "down", "objects": "down"}},
		"no checks": {nil, 200, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := health.Handler(row.checks, telemetry.NewRegistry())
				ready := request(handler, http.MethodGet, "/readyz")
				var got map[string]string
				if err := json.Unmarshal(ready.Body.Bytes(), &got); err != nil || !maps.Equal(got, row.want) || ready.Code != row.status {
					t.Errorf("%d %s, want %d %v", ready.Code, ready.Body, row.status, row.want)
				}
				if text := ready.Body.String(); strings.Contains(text, "hunter2") || strings.Contains(text, "internal") {
					t.Errorf("readiness contains details: %s", text)
				}
				if live := request(handler, http.MethodGet, "/livez"); live.Code != http.StatusOK {
					t.Errorf("livez: %d: liveness must not depend on dependencies", live.Code)
				}
			})
		})
	}
}

// Requests share one report per second, regardless of its result.
func TestReadinessIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checked, broken := 0, false
		handler := health.Probes(health.Checks{"redis": func(ctx context.Context) error {
			checked++
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
					if got := request(handler, http.MethodGet, "/readyz"); got.Code != want {
						t.Errorf("%d %s, want %d", got.Code, got.Body, want)
					}
				})
			}
			callers.Wait()
			if checked != total {
				t.Errorf("checked %d times, want %d", checked, total)
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

// A caller that disconnects does not affect the report for others.
func TestReadinessOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := health.Probes(health.Checks{"redis": func(ctx context.Context) error {
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
		if got := request(handler, http.MethodGet, "/readyz"); got.Code != http.StatusOK {
			t.Errorf("%d %s", got.Code, got.Body)
		}
		callers.Wait()
	})
}

// A public listener serves neither metrics nor profiles.
func TestPaths(t *testing.T) {
	probes, private := health.Probes(nil, time.Now), health.Handler(nil, telemetry.NewRegistry())
	for _, row := range []struct {
		handler      http.Handler
		method, path string
		status       int
	}{
		{probes, "GET", "/livez", 200}, {probes, "GET", "/readyz", 200}, {probes, "GET", "/metrics", 404},
		{probes, "GET", "/debug/pprof/", 404}, {probes, "GET", "/debug/pprof/profile", 404}, {probes, "GET", "/", 404},
		{private, "GET", "/metrics", 200}, {private, "GET", "/", 404}, {private, "POST", "/readyz", 405},
		{private, "DELETE", "/livez", 405},
	} {
		got := request(row.handler, row.method, row.path)
		if got.Code != row.status || row.path == "/metrics" && (row.status == 200) != strings.Contains(got.Body.String(), "go_goroutines") {
			t.Errorf("%s %s: %d %s", row.method, row.path, got.Code, got.Body)
		}
	}
}
