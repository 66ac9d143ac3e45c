package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswer is the largest introspection answer read, in bytes.
const maxAnswer = 64 << 10

// endpoint is an introspection endpoint and as whom it is asked.
type endpoint struct {
	url, client, secret string
	http                *http.Client
}

// newEndpoint ties a copy of the client to the endpoint: what is redirected is a token.
func newEndpoint(cfg Introspection, base *http.Client) endpoint {
	client := http.Client{}
	if base != nil {
		client = *base
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return endpoint{url: cfg.URL, client: cfg.ClientID, secret: cfg.ClientSecret, http: &client}
}

// ask posts a token (RFC 7662 section 2.1) and returns the answer's body. Every status but 200 is an error, a 401 too: it
// is about our own credentials.
func (e endpoint) ask(ctx context.Context, raw string) ([]byte, error) {
	form := url.Values{"token": {raw}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.SetBasicAuth(url.QueryEscape(e.client), url.QueryEscape(e.secret)) // encoded so by RFC 6749 section 2.3.1
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	if len(data) > maxAnswer {
		return nil, errors.New("answer of more than 64 KiB")
	}
	return data, nil
}

// readAnswer reads an introspection answer (RFC 7662 section 2.2) as strictly as a signed token. The error is ErrInvalid
// when the issuer says that the token is no good or describes one that cannot be used here, and another one when what
// came is no answer at all. Its username is for display, and not read.
func readAnswer(data []byte, issuer string) (claims, error) {
	all, err := readObject(data)
	if err != nil {
		return claims{}, errors.New("answer is not one JSON object with distinct members")
	}
	switch string(all["active"]) {
	case "true":
	case "false":
		return claims{}, invalid("not active")
	default:
		return claims{}, errors.New("answer does not say whether the token is active")
	}
	c := claims{issuer: issuer, all: all}
	if err := c.readAnswer(); err != nil {
		return claims{}, invalid(err.Error())
	}
	return c, nil
}

func (c *claims) readAnswer() (err error) {
	if raw, there := c.all["iss"]; there {
		if name, ok := text(raw); !ok || name != c.issuer {
			return errors.New("iss is another issuer's")
		}
	}
	if raw, there := c.all["token_type"]; there {
		if kind, ok := text(raw); !ok || !strings.EqualFold(kind, "Bearer") {
			return errors.New("token_type is not Bearer")
		}
	}
	if raw, there := c.all["aud"]; there {
		var ok bool
		if c.audiences, ok = texts(raw); !ok {
			return errors.New("aud is neither a string nor an array of strings")
		}
	}
	if c.expires, err = instant(c.all, "exp"); err != nil {
		return err
	}
	if c.expires.IsZero() {
		return errors.New("no exp")
	}
	if c.notBefore, err = instant(c.all, "nbf"); err != nil {
		return err
	}
	c.issuedAt, err = instant(c.all, "iat")
	return err
}
