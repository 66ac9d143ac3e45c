package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

var storeFaults = []fault{
	{name: "store-killed", apply: storeAway},
	{name: "store-away-15", lasts: 15 * time.Second, apply: storeAway},
	{name: "store-stopped-30", lasts: 30 * time.Second, apply: storeStopped},
	{name: "store-503", lasts: 15 * time.Second, apply: storeAnswers(func(r *http.Request) (int, string) {
		return http.StatusServiceUnavailable, storeError("SlowDown")
	})},
	{name: "store-slow", lasts: 20 * time.Second, apply: poisoned("", toStore, "latency",
		toxic{"latency": 300, "jitter": 200})},
	{name: "store-full", lasts: 15 * time.Second, apply: storeAnswers(func(r *http.Request) (int, string) {
		if r.Method == http.MethodPut || r.Method == http.MethodPost && !strings.Contains(r.URL.RawQuery, "delete") {
			return http.StatusInsufficientStorage, storeError("XMinioStorageFull")
		}
		return 0, ""
	})},
	{name: "store-answers-lost", lasts: 15 * time.Second, apply: storeAnswersLost},
}

func storeAway(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	return s.store.Start, s.store.Kill()
}

func storeStopped(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	return func(context.Context) error { return s.store.Resume() }, s.store.Pause()
}

// storeAnswers answers requests instead of the store, as MinIO does.
func storeAnswers(answer func(*http.Request) (int, string)) breaker {
	return func(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
		s.storing.OnRequest(answer)
		return func(context.Context) error { s.storing.Mend(); return nil }, nil
	}
}

func storeError(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><Error><Code>` + code + `</Code><Message>` + code + `</Message></Error>`
}

// storeAnswersLost carries every third writing request out and loses its answer.
func storeAnswersLost(_ context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	s.storing.OnReply(func(reply *http.Response) error {
		if reply.Request.Method != http.MethodGet && reply.Request.Method != http.MethodHead && rand.IntN(3) == 0 {
			return errors.New("the answer is lost")
		}
		return nil
	})
	return func(context.Context) error { s.storing.Mend(); return nil }, nil
}
