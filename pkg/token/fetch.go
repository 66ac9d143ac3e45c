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
	"sync"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

const (
	maxKeySet    = 1 << 20 // bytes
	maxRedirects = 3
)

var errTooLarge = errors.New("larger than 1 MiB")

// remote is a key set behind a URL.
type remote struct {
	url    string
	client *http.Client
}

// keySetClient copies a client and ties it to the host that was asked: a key set that moves to another host, or off
// https, is somebody else's.
func keySetClient(base *http.Client) *http.Client {
	client := http.Client{}
	if base != nil {
		client = *base
	}
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
			return errors.New("redirected to another host")
		}
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		return nil
	}
	return &client
}

func (r *remote) read(ctx context.Context) ([]byte, error) {
	data, _, err := r.get(ctx)
	return data, err
}

// get returns the whole set and the header that it came with.
func (r *remote) get(ctx context.Context) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, nil, withoutURL(err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, nil, withoutURL(err)
	}
	data, err := readLimited(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return data, resp.Header, nil
}

// changed cannot be told without asking, which is what a fetch is for.
func (r *remote) changed() answer { return unknown }

// withoutURL takes the URL out of an error: it may have a query string, which no log shows.
func withoutURL(err error) error {
	var named *url.Error
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// local is a key set in a file. It is read again when its size, time or identity changes; replace it by renaming.
type local struct {
	path string

	mu   sync.Mutex
	last fs.FileInfo // of what was read last; nil before the first reading
}

func (l *local) read(context.Context) ([]byte, error) {
	file, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat() // before the content: what changes while it is read shows as changed afterwards
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.last = info
	l.mu.Unlock()
	return readLimited(file)
}

func (l *local) changed() answer {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	info, err := os.Stat(l.path)
	switch {
	case err != nil || last == nil:
		return unknown
	case !configfile.SameContent(info, last):
		return yes
	}
	return no
}

func readLimited(from io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeySet {
		return nil, errTooLarge
	}
	return data, nil
}
