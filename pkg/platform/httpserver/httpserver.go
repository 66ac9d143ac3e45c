// Package httpserver serves HTTP and TLS with limits on what a client can hold, and drains before it stops.
package httpserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// drainTimeout bounds the requests that run when a server stops.
const drainTimeout = 20 * time.Second

// Option changes how a server serves.
type Option func(*config)

type config struct {
	limits Limits
	tls    *tls.Config // nil: plain HTTP
	log    *slog.Logger
}

// WithTLS serves only TLS, including HTTP/2, with the given configuration: see certs.ServerTLS.
func WithTLS(tls *tls.Config) Option { return func(c *config) { c.tls = tls } }

// WithLimits sets limits. Fields that are zero keep their defaults.
func WithLimits(limits Limits) Option { return func(c *config) { c.limits = limits } }

// WithLog logs the server's own errors, such as a handler's panic, as JSON. Failed TLS handshakes are logged at level
// debug: anybody can cause any number of them.
func WithLog(log *slog.Logger) Option { return func(c *config) { c.log = log } }

// Serve serves the handler on the listener until the context ends, then lets running requests finish. The time for
// which a client can hold a connection without progress is bounded, see Limits. The total time of a response is not,
// because files are long.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, options ...Option) error {
	var c config
	for _, option := range options {
		option(&c)
	}
	limits := c.limits.orDefaults()
	listener = netutil.LimitListener(listener, limits.Connections)
	server := limits.server(handler)
	serve := server.Serve
	if c.tls != nil {
		server.TLSConfig = c.tls
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if c.log != nil {
		server.ErrorLog = log.New(logWriter{c.log}, "", 0)
	}
	failed := make(chan error, 1)
	go func() { failed <- serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // downloads that outlast the drain are resumed by their clients
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}

// logWriter writes the lines of an http.Server.ErrorLog to the logger.
type logWriter struct{ to *slog.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	level := slog.LevelError
	if bytes.Contains(line, []byte("TLS handshake error")) {
		level = slog.LevelDebug
	}
	w.to.Log(context.Background(), level, string(bytes.TrimSpace(line)), "part", "http")
	return len(line), nil
}
