package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Errors that callers branch on.
var (
	// ErrForeign: the server named a URL of another origin for something that needs the token.
	ErrForeign = errors.New("the URL is not on the origin of the base URL: the token stays here")
	// ErrInsecure: the token would travel over plain http to another machine.
	ErrInsecure = errors.New("the base URL is plain http to another machine: everybody on the way could read the token")
	// ErrTokenRefused: the server refused the token and its source has no other one.
	ErrTokenRefused = errors.New("the token was refused and there is no other")
	// ErrMismatch: a file is not what the server announced: its digest, count, types or compression are wrong.
	ErrMismatch = errors.New("not what the server announced")
	// ErrFolder: the folder holds something that does not go together with the export asked for.
	ErrFolder = errors.New("the folder does not fit")
)

// TokenSource hands out bearer tokens. It is called from several goroutines at once.
type TokenSource interface {
	// Token returns the token to send. refused is "" or the token that the server just answered with 401: then
	// another one is wanted, and a source that has none returns ErrTokenRefused.
	Token(ctx context.Context, refused string) (string, error)
}

// Observer hears how an export goes. Its methods are called from several goroutines at once and return quickly.
type Observer interface {
	// Polled: the server said how far it is.
	Polled(Status)
	// Planned: the manifest was read; these files will be downloaded. Called once.
	Planned([]File)
	// Advanced: so many more resources and bytes (without compression) of a file have arrived. Both are negative
	// when a file starts over because it changed on the server.
	Advanced(file File, resources, bytes int64)
	// Finished: the file was checked and stands under its final name.
	Finished(File)
	// Waiting: the server or the way to it is in trouble; the next attempt follows after wait.
	Waiting(reason error, wait time.Duration)
}

// Config says whom a client talks to.
type Config struct {
	Base     string      // the FHIR base URL, absolute
	Tokens   TokenSource // nil: the server is open
	IG       bool        // kick off with Prefer: respond-async; Retry-After is seconds then, else milliseconds
	Parallel int         // files downloaded at once, at least 1
	Insecure bool        // send tokens over plain http to other machines, too
	Observer Observer    // nil: nobody listens
}

// Client talks to one server. It is safe for use by several goroutines.
type Client struct {
	base     *url.URL
	tokens   TokenSource
	ig       bool
	parallel int
	observer Observer
	http     *http.Client
	sleep    func(context.Context, time.Duration) error
	stall    time.Duration // a download that brings no byte for so long is taken for lost
}

// New returns a client. The base URL must be absolute http or https, without credentials, query or fragment, and
// https when there are tokens and the server is another machine, unless Config.Insecure.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(cfg.Base, "/"))
	if err != nil {
		return nil, errors.New("the base URL is not a URL")
	}
	if !isWeb(base) || base.RawQuery != "" || base.Fragment != "" || base.User != nil {
		return nil, errors.New("the base URL must be an absolute http or https URL without credentials or query")
	}
	if cfg.Tokens != nil && !cfg.Insecure && strings.EqualFold(base.Scheme, "http") && !isLoopback(base.Hostname()) {
		return nil, ErrInsecure
	}
	if cfg.Parallel < 1 {
		return nil, fmt.Errorf("%d parallel downloads: at least 1 is needed", cfg.Parallel)
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the default HTTP transport was replaced")
	}
	transport = transport.Clone()
	transport.DisableCompression = true // the stored gzip bytes are wanted as they are: digest and ranges are theirs
	transport.MaxIdleConnsPerHost = cfg.Parallel + 1
	transport.ResponseHeaderTimeout = time.Minute
	c := &Client{
		base:     base,
		tokens:   cfg.Tokens,
		ig:       cfg.IG,
		parallel: cfg.Parallel,
		observer: cfg.Observer,
		sleep:    sleep,
		stall:    time.Minute,
	}
	if c.observer == nil {
		c.observer = nobody{}
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: c.redirect}
	return c, nil
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// sleep waits for d, or returns early with the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// nobody is the Observer of those who want none.
type nobody struct{}

func (nobody) Polled(Status)                {}
func (nobody) Planned([]File)               {}
func (nobody) Advanced(File, int64, int64)  {}
func (nobody) Finished(File)                {}
func (nobody) Waiting(error, time.Duration) {}

// isWeb reports whether the URL is absolute http or https.
func isWeb(u *url.URL) bool {
	return (strings.EqualFold(u.Scheme, "http") || strings.EqualFold(u.Scheme, "https")) && u.Hostname() != ""
}

// isLoopback reports whether the host is this machine: a loopback address, or a name that never leaves it (RFC 6761).
func isLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// SameOrigin reports whether two texts are http or https URLs of one origin: scheme, host and port (RFC 6454).
func SameOrigin(a, b string) bool {
	one, err := url.Parse(a)
	if err != nil || !isWeb(one) {
		return false
	}
	other, err := url.Parse(b)
	return err == nil && isWeb(other) && sameOrigin(one, other)
}

// sameOrigin reports whether two URLs agree in scheme, host and port (RFC 6454).
func sameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case strings.EqualFold(u.Scheme, "https"):
		return "443"
	default:
		return "80"
	}
}
