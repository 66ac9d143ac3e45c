// Package httpserver serves HTTP and TLS. It limits the resources that a client can hold, and drains before it stops.
package httpserver

import (
	"bytes"
	"cmp"
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

// drainTimeout is the default of Options.Drain.
const drainTimeout = 20 * time.Second

// Options configure a server. All are optional.
type Options struct {
	Limits Limits
	TLS    *tls.Config // serve only TLS, including HTTP/2: see certs.ServerTLS
	// Drain bounds how long running requests may take after the server starts to stop; 0: 20 s.
	Drain time.Duration
	// Log receives the server's own errors, such as a handler's panic. Failed TLS handshakes have level debug, because
	// any client can cause any number of them.
	Log *slog.Logger
}

// Serve serves the handler on the listener until the context ends, then lets running requests finish. The time for
// which a client can hold a connection without progress is bounded, see Limits. The total time of a response is not,
// because files are long.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, options Options) error {
	limits := options.Limits.orDefaults()
	listener = netutil.LimitListener(narrow{listener}, limits.Connections)
	server := limits.server(handler)
	serve := server.Serve
	if options.TLS != nil {
		server.TLSConfig = options.TLS
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if options.Log != nil {
		server.ErrorLog = log.New(logWriter{options.Log}, "", 0)
	}
	failed := make(chan error, 1)
	go func() { failed <- serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(options.Drain, drainTimeout))
	defer cancel()
	err := server.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // clients resume downloads that outlast the drain
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
