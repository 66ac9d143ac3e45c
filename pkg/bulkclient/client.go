// Package bulkclient is a client for FHIR Bulk Data exports: it kicks off an export, polls its status, and downloads its
// files into a folder. It works with Sluice and with any server of the HL7 Bulk Data Access IG.
//
//	client, err := bulkclient.New(bulkclient.Config{Base: base, Tokens: tokens, IG: true, Parallel: 4})
//	...
//	defer client.Close()
//	report, err := client.Export(ctx, bulkclient.Request{Group: "cohort"}, bulkclient.Options{Dir: "export"})
//
// [Client.Export] runs the whole protocol. [Client.KickOff], [Client.Await] and [Client.Cancel] are its single steps, and
// [Verify] checks a finished folder again. [NewTokenSource] returns the tokens of a SMART Backend Services client.
//
// Other servers leave out or write differently what the guide requires. Whatever is missing is accepted, and reported in
// Report.Warnings; whatever is there is checked.
//
// A file gets its final name only after its checks: the digest of the stored representation (Repr-Digest, RFC 9530), the
// gzip checksum, the number of lines and the type of every line. A lost connection or a killed process loses no
// downloaded bytes: Export with Options.Resume continues in the same folder with ranges that are conditional on the
// file's ETag. Memory use does not depend on the size of a file.
//
// Export with Options.Last keeps a copy up to date: it exports what changed since the export in a folder, and merges both
// into a new folder.
//
// The client sends its token only to the origin of the base URL, and writes only directly inside the folder, whatever
// names the server chooses. It writes nothing to a terminal: an [Observer] receives its progress.
package bulkclient

import (
	"cmp"
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
	// ErrForeignOrigin: a URL that needs the token is not on the origin of the base URL.
	ErrForeignOrigin = errors.New("the URL is not on the origin of the base URL: the token is not sent there")
	// ErrInsecureHTTP: the token would be sent over plain http to another machine.
	ErrInsecureHTTP = errors.New("the base URL is plain http to another machine: anyone on the path could read the token")
	// ErrTokenRefused: the server refused the token and its source has no other one.
	ErrTokenRefused = errors.New("the server rejected the token, and no way to get a new one was given")
	// ErrMismatch: a file or manifest differs from what the server announced, or is malformed.
	ErrMismatch = errors.New("not what the server announced")
	// ErrTooLarge: the files have more bytes than Options.MaxBytes.
	ErrTooLarge = errors.New("the export is too large")
	// ErrCancelled: the export was interrupted, and cancelled at the server (Options.CancelOnInterrupt).
	ErrCancelled = errors.New("the export was cancelled")
	// ErrFolder: the folder cannot be used for this export.
	ErrFolder = errors.New("the output folder cannot be used")
	// ErrLast: the request cannot continue the export in Options.Last.
	ErrLast = errors.New("the last export cannot be continued")
)

// TokenSource provides bearer tokens. It is called from several goroutines at once.
type TokenSource interface {
	// Token returns the token to send. refused is "" or the token that the server has just refused with a 401.
	// In the latter case Token returns another one, or ErrTokenRefused if there is none.
	Token(ctx context.Context, refused string) (string, error)
}

// Observer receives the progress of an export. Its methods are called from several goroutines at once and must return
// quickly.
type Observer interface {
	// Started: the export was kicked off, or is continued.
	Started(Job)
	// Polled: the server answered that the job is not complete.
	Polled(Status)
	// Planned: the manifest was read; these files will be downloaded. Called once.
	Planned([]File)
	// Advanced: this many more resources and bytes (uncompressed) of a file have arrived. Both are negative when a
	// file starts over because it changed on the server.
	Advanced(file File, resources, bytes int64)
	// Finished: the file was checked and has its final name.
	Finished(File)
	// Waiting: a request failed; the next attempt follows after wait.
	Waiting(reason error, wait time.Duration)
}

// Config configures a Client.
type Config struct {
	Base   string      // the FHIR base URL, absolute
	Tokens TokenSource // nil: the server needs no token
	// IG: kick off with Prefer: respond-async; then the Retry-After of a 202 is in seconds, else in milliseconds (spec 9).
	// A server that refuses a kick-off without the header gets it in any case.
	IG           bool
	Parallel     int      // concurrent downloads, at least 1
	InsecureHTTP bool     // send tokens over plain http to other machines as well
	Observer     Observer // nil: none
}

// Client is a client of one server. It is safe for concurrent use.
type Client struct {
	cfg   Config // with an Observer
	base  *url.URL
	http  *http.Client
	sleep func(context.Context, time.Duration) error
	stall time.Duration // a download without a byte for this long is reconnected
}

// New returns a client. The base URL must be absolute http or https, without credentials, query or fragment, and
// https when there are tokens and the server is another machine, unless Config.InsecureHTTP.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(cfg.Base, "/"))
	if err != nil {
		return nil, errors.New("the base URL is not a URL")
	}
	if !isWeb(base) || base.RawQuery != "" || base.Fragment != "" || base.User != nil {
		return nil, errors.New("the base URL must be an absolute http or https URL without credentials or query")
	}
	if cfg.Tokens != nil && !cfg.InsecureHTTP && isInsecure(base) {
		return nil, ErrInsecureHTTP
	}
	if cfg.Parallel < 1 {
		return nil, fmt.Errorf("parallel downloads must be at least 1, not %d", cfg.Parallel)
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the default HTTP transport was replaced")
	}
	transport = transport.Clone()
	transport.DisableCompression = true // digests and ranges are of the stored gzip bytes
	transport.MaxIdleConnsPerHost = cfg.Parallel + 1
	transport.ResponseHeaderTimeout = time.Minute
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	c := &Client{cfg: cfg, base: base, sleep: sleep, stall: time.Minute}
	c.http = &http.Client{Transport: transport, CheckRedirect: c.redirect}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

type noObserver struct{}

func (noObserver) Started(Job)                  {}
func (noObserver) Polled(Status)                {}
func (noObserver) Planned([]File)               {}
func (noObserver) Advanced(File, int64, int64)  {}
func (noObserver) Finished(File)                {}
func (noObserver) Waiting(error, time.Duration) {}

// isWeb reports whether the URL is absolute http or https. url.Parse has already lower-cased the scheme.
func isWeb(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

// isInsecure reports whether the URL is plain http to another machine: not to a loopback address, nor to a name that
// always resolves to one (RFC 6761).
func isInsecure(u *url.URL) bool {
	if u.Scheme != "http" {
		return false
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return !ip.Unmap().IsLoopback()
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	return host != "localhost" && !strings.HasSuffix(host, ".localhost")
}

// SameOrigin reports whether two texts are http or https URLs of one origin: scheme, host and port (RFC 6454).
func SameOrigin(a, b string) bool {
	one, errA := url.Parse(a)
	other, errB := url.Parse(b)
	return errA == nil && errB == nil && isWeb(one) && isWeb(other) &&
		one.Scheme == other.Scheme && strings.EqualFold(one.Hostname(), other.Hostname()) && port(one) == port(other)
}

// originOf returns the origin of a URL for an error: the rest may hold a secret.
func originOf(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return "not a URL"
	}
	return printable(u.Scheme + "://" + u.Host)
}

func port(u *url.URL) string {
	if u.Scheme == "https" {
		return cmp.Or(u.Port(), "443")
	}
	return cmp.Or(u.Port(), "80")
}
