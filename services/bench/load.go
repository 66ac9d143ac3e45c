package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// callers is the number of concurrent requests of a load.
const callers = 8

// load sends count requests, each as soon as one of the concurrent callers is free, and passes every response to each,
// which may be nil. target returns the i-th request.
func load(
	ctx context.Context, concurrent, count int, target func(i int) vegeta.Target, each func(*vegeta.Result) error,
) (m vegeta.Metrics, err error) {
	attacker := vegeta.NewAttacker(vegeta.Workers(uint64(concurrent)), vegeta.MaxWorkers(uint64(concurrent)))
	var next atomic.Int64
	targeter := func(t *vegeta.Target) error {
		*t = target(int(next.Add(1)) - 1)
		return nil
	}
	for result := range attacker.Attack(targeter, pacer{ctx, uint64(count)}, 0, "") {
		m.Add(result)
		if err == nil && result.Code == 0 {
			err = fmt.Errorf("%s: %s", result.URL, result.Error)
		}
		if err == nil && each != nil {
			err = each(result)
		}
		if err != nil {
			attacker.Stop()
		}
	}
	m.Close()
	if err == nil {
		err = ctx.Err()
	}
	return m, err
}

// pacer sends count requests without waiting.
type pacer struct {
	ctx   context.Context
	count uint64
}

func (p pacer) Pace(_ time.Duration, sent uint64) (wait time.Duration, stop bool) {
	return 0, sent >= p.count || p.ctx.Err() != nil
}

func (p pacer) Rate(time.Duration) float64 { return 0 } // for reports that draw the intended rate

// authorized is a request with a bearer token.
func authorized(method, url, token string) vegeta.Target {
	return vegeta.Target{Method: method, URL: url, Header: http.Header{"Authorization": {"Bearer " + token}}}
}

// wantAccepted refuses any response but 202.
func wantAccepted(r *vegeta.Result) error {
	if r.Code != http.StatusAccepted {
		return fmt.Errorf("%s %s: status %d, want 202", r.Method, r.URL, r.Code)
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
