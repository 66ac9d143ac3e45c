package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/auth/clients"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

// authPath is where the token service is mounted, beside the FHIR base.
const authPath = "/auth"

// authService is the token service of a standalone server. Its signing keys are in the embedded Redis, sealed with a secret
// of the state folder.
type authService struct {
	service *tokenapi.Service
	store   *authstore.Store
	file    *clients.File // nil: no clients
	name    string        // iss of its tokens
}

func openAuth(
	ctx context.Context, opts options, base *url.URL, redis string, log *slog.Logger, registry *prometheus.Registry,
	events *audit.Log,
) (a *authService, err error) {
	if base.Path == authPath || strings.HasPrefix(base.Path, authPath+"/") {
		return nil, fmt.Errorf("--base-url: %s is the path of the token service", authPath)
	}
	a = &authService{name: base.Scheme + "://" + base.Host + authPath}
	if opts.clients != "" {
		if a.file, err = clients.OpenFile(opts.clients); err != nil {
			return nil, err
		}
	}
	if a.store, err = authstore.Open(redis, nil, nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.store.Close())
		}
	}()
	seal, err := secret(filepath.Join(opts.state, "signing.secret"))
	if err != nil {
		return nil, err
	}
	keys, err := a.store.Keys(envconfig.Defaults[authstore.Schedule](), seal)
	if err != nil {
		return nil, err
	}
	a.service, err = tokenapi.New(tokenapi.Config{
		TokenURL: a.tokenURL(), Audience: base.String(), Lifetime: 5 * time.Minute, ClientSecrets: true,
		Limits: envconfig.Defaults[authstore.Limits](), Proxies: opts.proxies, Now: time.Now, Logger: log,
	}, tokenapi.Deps{
		Store: a.store, Keys: keys, Clients: clients.New(a.file, a.store), Audit: events, Registry: registry,
	})
	if err != nil {
		return nil, err
	}
	return a, a.service.Refresh(ctx) // the first token needs a key
}

func (a *authService) close() error {
	a.service.Close()
	return a.store.Close()
}

func (a *authService) tokenURL() string { return a.name + "/token" }

// owners returns the clients as owners of exports.
func (a *authService) owners() []export.Owner {
	if a.file == nil {
		return nil
	}
	var owners []export.Owner
	for _, id := range a.file.IDs() {
		owners = append(owners, export.Owner{Issuer: a.name, Subject: id})
	}
	return owners
}

// issuer returns the service as an issuer of the API. The URL of the key set works only with the client below, which
// calls the service in process: the public name or certificate may not be valid on this machine.
func (a *authService) issuer(audience string) token.Issuer {
	return token.Issuer{Name: a.name, Audiences: []string{audience}, JWKSURL: "http://localhost" + authPath + "/jwks"}
}

func (a *authService) client() *http.Client { return &http.Client{Transport: inProcess{a.service}} }

// inProcess is a transport that calls a handler.
type inProcess struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &response{header: http.Header{}, status: http.StatusOK}
	p.handler.ServeHTTP(w, r)
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

// response buffers a response. Key sets are small.
type response struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *response) Header() http.Header            { return w.header }
func (w *response) WriteHeader(status int)         { w.status = status }
func (w *response) Write(part []byte) (int, error) { return w.body.Write(part) }

// beside serves the token service below its path, and all other paths with the other handler.
func (a *authService) beside(others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, authPath+"/") {
			a.service.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	})
}
