package testenv

import (
	"net"
	"strconv"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/sluice-fhir/sluice/pkg/testenv/servers"
)

// EmbeddedRedis returns an embedded Redis that can be closed and restarted: no connection takes its port meanwhile. It is
// closed with the test.
func EmbeddedRedis(t testing.TB) *miniredis.Miniredis {
	t.Helper()
	port, err := servers.FreePort(t.Context())
	redis := miniredis.NewMiniRedis()
	if err == nil {
		err = redis.StartAddr(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Close)
	return redis
}
