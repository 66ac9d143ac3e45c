package platform

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// AskHealth asks a server how it is: nil when it answers 200 at the URL, which must be http or https. Redirects are not
// followed: what they lead to is somebody else. The context bounds the wait. No error quotes more of the URL than its host.
func AskHealth(ctx context.Context, transport http.RoundTripper, at string) error {
	target, err := url.Parse(at)
	if err != nil || target.Host == "" || (target.Scheme != "http" && target.Scheme != "https") {
		return errors.New("wants a URL such as http://host:port/readyz")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return errors.New("wants a URL such as http://host:port/readyz")
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", target.Host, err)
	}
	if err := response.Body.Close(); err != nil {
		return fmt.Errorf("%s: end of its answer: %w", target.Host, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", target.Host, response.StatusCode)
	}
	return nil
}
