package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

const (
	maxKeySet    = 1 << 20 // bytes
	maxRedirects = 3
)

// fetches runs requests to issuers and to key set servers in the background. A fetch outlives the request that
// started it, because other requests may wait for it too.
type fetches struct {
	life   context.Context // cancelled by close
	cancel context.CancelFunc

	mu      sync.Mutex // no fetch begins after close
	running sync.WaitGroup
}

func newFetches() *fetches {
	life, cancel := context.WithCancel(context.Background())
	return &fetches{life: life, cancel: cancel}
}

// startFetch runs fetch with a time limit. Calls with the same group and key share one run.
func startFetch[T any](
	f *fetches, group *singleflight.Group, key string, limit time.Duration, fetch func(context.Context) (T, error),
) <-chan singleflight.Result {
	return group.DoChan(key, func() (any, error) {
		if !f.begin() {
			return nil, fmt.Errorf("%w: closed", export.ErrUnavailable)
		}
		defer f.running.Done()
		ctx, cancel := context.WithTimeout(f.life, limit)
		defer cancel()
		return fetch(ctx)
	})
}

// awaitFetch returns the result of a fetch, or export.ErrUnavailable when ctx ends first.
func awaitFetch[T any](ctx context.Context, result <-chan singleflight.Result) (found T, err error) {
	select {
	case r := <-result:
		if r.Err == nil {
			found = r.Val.(T)
		}
		return found, r.Err
	case <-ctx.Done():
		return found, fmt.Errorf("%w: wait for issuer: %w", export.ErrUnavailable, ctx.Err())
	}
}

func (f *fetches) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life.Err() != nil {
		return false
	}
	f.running.Add(1)
	return true
}

// close cancels the running fetches and waits for them.
func (f *fetches) close() {
	f.mu.Lock()
	f.cancel()
	f.mu.Unlock()
	f.running.Wait()
}

// clientWith returns a copy of base, or a new client, with the given redirect policy.
func clientWith(base *http.Client, redirect func(req *http.Request, via []*http.Request) error) *http.Client {
	client := http.Client{}
	if base != nil {
		client = *base
	}
	client.CheckRedirect = redirect
	return &client
}

// keySetClient limits redirects to the original host: a key set on another host, or not on https, may be an attacker's.
func keySetClient(base *http.Client) *http.Client {
	return clientWith(base, func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
			return errors.New("redirected to another host")
		}
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		return nil
	})
}

// get returns a document of at most 1 MiB and its response header.
func get(ctx context.Context, client *http.Client, address string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, withoutURL(err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	return do(client, req, maxKeySet)
}

// do sends a request and returns the body and the header of a 200 response. Other statuses are errors, and so is a body of
// more than limit bytes.
func do(client *http.Client, req *http.Request, limit int64) ([]byte, http.Header, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, withoutURL(err)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("larger than %d KiB", limit>>10)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return data, resp.Header, nil
}

// withoutURL removes the URL from an error: it may have a query string, which must not be logged.
func withoutURL(err error) error {
	var named *url.Error
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// discover returns the key set that an issuer's configuration document names (OpenID Connect Discovery 4). It reads the
// document again with each key set, because an issuer may move its keys.
func discover(ctx context.Context, client *http.Client, issuer string) ([]byte, http.Header, error) {
	// The path replaces a slash at the end (OpenID Connect Discovery 4.1).
	document, _, err := get(ctx, client, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	var keys string
	if err == nil {
		keys, err = readDiscovery(document, issuer)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("discovery document: %w", err)
	}
	return get(ctx, client, keys)
}

// readDiscovery returns the jwks_uri of a configuration document. Its issuer member must equal the issuer's name (OpenID
// Connect Discovery 4.3). A document that came over the network must not point to this machine: http on loopback is
// accepted only for an issuer that is itself on loopback.
func readDiscovery(document []byte, issuer string) (string, error) {
	all, err := readObject(document)
	if err != nil {
		return "", errors.New("not one JSON object with distinct members")
	}
	if name, ok := text(all["issuer"]); !ok || name != issuer {
		return "", errors.New("issuer is not the configured name")
	}
	keys, ok := text(all["jwks_uri"])
	if !ok {
		return "", errors.New("no jwks_uri")
	}
	if strings.HasPrefix(issuer, "https:") && !strings.HasPrefix(keys, "https:") {
		return "", errors.New("jwks_uri: must be https")
	}
	return keys, checkURL("jwks_uri", keys)
}

// keyFile is a key set in a file. The file must be replaced by renaming.
type keyFile struct {
	path string

	mu   sync.Mutex
	last fs.FileInfo // of the last file read; nil before the first read
}

func (f *keyFile) read(context.Context) ([]byte, http.Header, error) {
	data, info, err := configfile.ReadStable(f.path, maxKeySet)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = info
	return data, nil, err
}

// changed reports whether the file differs in size, time or identity from the last one read. A missing file is a change.
func (f *keyFile) changed() bool {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	info, err := os.Stat(f.path)
	return err != nil || last == nil || !configfile.SameContent(info, last)
}
