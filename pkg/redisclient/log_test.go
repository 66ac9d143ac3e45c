package redisclient

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestLinesOfTheClientAreJSONAndFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &clientLogger{NewLogLimit(slog.New(slog.NewJSONHandler(&out, nil)))}
		for range 21 {
			l.Printf(t.Context(), "redis: connection pool: failed to dial: %s\n", "refused")
			time.Sleep(time.Second)
		}
		lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
		if len(lines) != 3 {
			t.Fatalf("%d lines in 21 s: %s", len(lines), &out)
		}
		var last struct {
			Level, Msg, Detail string
			Dropped            int
		}
		if err := json.Unmarshal(lines[2], &last); err != nil || last.Level != "WARN" || last.Dropped != 9 ||
			last.Detail != "connection pool: failed to dial: refused" {
			t.Errorf("%+v, %v", last, err)
		}
	})
}
