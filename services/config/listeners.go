package config

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// privateConnections bounds the connections of the private listener: probes, scrapers and a few operators.
const privateConnections = 256

// privateDrain bounds how long the private listener waits for requests, such as a profile, when all else has stopped.
const privateDrain = 2 * time.Second

// Listen opens a TCP listener.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

// HTTP returns the component that serves a handler on an open listener. Common.Listeners returns the options.
func HTTP(name string, listener net.Listener, handler http.Handler, options httpserver.Options) rungroup.Component {
	return rungroup.Component{Name: name, Run: func(ctx context.Context) error {
		return httpserver.Serve(ctx, listener, handler, options)
	}}
}

// PrivateHTTP is HTTP on the listener for operators. It is stopped last, so that metrics are served until the process has
// drained; from the beginning of the stop, /readyz responds 503. Its / lists what it serves: the paths of health.Handler
// and the given ones.
func PrivateHTTP(
	listener net.Listener, handler http.Handler, options httpserver.Options, paths ...string,
) rungroup.Component {
	var stopping atomic.Bool
	index := indexOf(append(paths, "/livez", "/readyz", "/metrics", "/debug/pprof/"))
	component := HTTP("private listener", listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stopping.Load() && r.URL.Path == "/readyz" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"process":"stopping"}` + "\n")) // a probe that has gone needs no answer
			return
		}
		if r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", "default-src 'none'")
			_, _ = io.WriteString(w, index) // as above
			return
		}
		handler.ServeHTTP(w, r)
	}), options)
	component.Stopping = func() { stopping.Store(true) }
	return component
}

func indexOf(paths []string) string {
	var text strings.Builder
	text.WriteString("<!doctype html>\n<html lang=\"en\"><title>Sluice</title>\n<p>This private port serves:</p>\n<ul>\n")
	for _, path := range paths {
		fmt.Fprintf(&text, "<li><a href=\"%[1]s\">%[1]s</a></li>\n", path)
	}
	text.WriteString("</ul>\n</html>\n")
	return text.String()
}

// Listeners holds the options of the listeners of a service.
type Listeners struct {
	Public, Private httpserver.Options
}

// Listeners opens the certificates, registers metrics of their expiry, and warns about files with secrets that every
// account of the machine can read.
func (c Common) Listeners(log *slog.Logger, registry prometheus.Registerer) (*Listeners, error) {
	clients, err := c.clients()
	if err != nil {
		return nil, err
	}
	public, err := c.secured("public", c.public(), nil, log, registry)
	if err != nil {
		return nil, err
	}
	public.Limits.Connections = c.MaxConnections
	private, err := c.secured("private", c.private(), clients, log, registry)
	if err != nil {
		return nil, err
	}
	private.Limits.Connections = privateConnections
	private.Drain = privateDrain
	for variable, file := range c.secretFiles() {
		if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o007 != 0 {
			log.Warn("every account of this machine may use a file that holds a secret", "variable", variable)
		}
	}
	return &Listeners{Public: public, Private: private}, nil
}

// secured returns the options of one listener, without limits.
func (c Common) secured(
	name string, from files, clients *x509.CertPool, log *slog.Logger, registry prometheus.Registerer,
) (httpserver.Options, error) {
	options := httpserver.Options{Log: log}
	certificate, err := from.open(log)
	if err != nil || certificate == nil {
		return options, err
	}
	if err := certificate.Register(registry, name); err != nil {
		return options, fmt.Errorf("metrics of the %s listener's certificate: %w", name, err)
	}
	options.TLS = certs.ServerTLS(certificate, clients)
	return options, nil
}
