package queue

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

func TestAsynqLogsAKindOfLineEveryTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := asynqLogger{redisclient.NewLogLimit(slog.New(slog.NewJSONHandler(&out, nil)))}
		for range 22 { // 11 s without Redis
			log.Error("Failed to forward scheduled tasks: connection refused")
			log.Warn("Could not push task id=", time.Now().String(), " back to queue")
			time.Sleep(500 * time.Millisecond)
		}
		for _, kind := range []string{"Failed to forward", "Could not push"} {
			if got := strings.Count(out.String(), kind); got != 2 {
				t.Errorf("%d lines %q, want 2", got, kind)
			}
		}
	})
}
