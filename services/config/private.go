package config

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// Listen opens a TCP listener.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

// HTTP is the part of a process that serves a handler on an open listener; see Common.Listeners for the options.
func HTTP(name string, listener net.Listener, handler http.Handler, options httpserver.Options) rungroup.Component {
	return rungroup.Component{Name: name, Run: func(ctx context.Context) error {
		return httpserver.Serve(ctx, listener, handler, options)
	}}
}
