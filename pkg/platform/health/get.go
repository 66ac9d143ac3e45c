package health

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// Get requests an http or https URL and returns nil for status 200. It does not follow redirects, which lead to another
// server. Errors contain only the URL's host.
func Get(ctx context.Context, transport http.RoundTripper, at string) error {
	target, err := url.Parse(at)
	request, requestErr := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if errors.Join(err, requestErr) != nil || target.Host == "" || target.Scheme != "http" && target.Scheme != "https" {
		return errors.New("wants a URL such as http://host:port/readyz")
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", target.Host, err)
	}
	if err := response.Body.Close(); err != nil {
		return fmt.Errorf("%s: close the answer: %w", target.Host, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", target.Host, response.StatusCode)
	}
	return nil
}
