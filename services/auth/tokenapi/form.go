package tokenapi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxBody       = 64 << 10 // bytes
	maxParameters = 20
)

// parameters are those that the service reads. Errors name no others.
var parameters = []string{
	"grant_type", "scope", "client_id", "client_secret", "client_assertion_type", "client_assertion",
}

// readForm reads the parameters of a token request. It refuses what RFC 6749 section 3.2 forbids: parameters in the URL,
// which is logged, and repeated ones. A parameter without a value counts as omitted.
func readForm(w http.ResponseWriter, r *http.Request) (map[string]string, *problem) {
	if r.URL.RawQuery != "" {
		return nil, invalidRequest("parameters must be in the body, not in the URL")
	}
	media, options, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := strings.ToLower(options["charset"])
	if err != nil || media != "application/x-www-form-urlencoded" || charset != "" && charset != "utf-8" {
		return nil, unsupported("the Content-Type must be application/x-www-form-urlencoded")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, unsupported("the body must not have a Content-Encoding")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		p := invalidRequest("the body is larger than 64 KiB")
		p.status = http.StatusRequestEntityTooLarge
		return nil, p
	}
	if err != nil {
		return nil, invalidRequest("the body could not be read").because(err)
	}
	return parseForm(string(body))
}

func unsupported(text string) *problem {
	p := invalidRequest("%s", text)
	p.status = http.StatusUnsupportedMediaType
	return p
}

func parseForm(body string) (map[string]string, *problem) {
	values := make(map[string]string)
	seen := make(map[string]bool)
	count := 0
	for pair := range strings.SplitSeq(body, "&") {
		if pair == "" {
			continue
		}
		if count++; count > maxParameters {
			return nil, invalidRequest("more than %d parameters", maxParameters)
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(rawName)
		value, err2 := url.QueryUnescape(rawValue)
		if err1 != nil || err2 != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, invalidRequest("the body is not form-urlencoded UTF-8")
		}
		if seen[name] {
			if slices.Contains(parameters, name) {
				return nil, invalidRequest("%s is repeated", name)
			}
			return nil, invalidRequest("a parameter is repeated")
		}
		seen[name] = true
		if value != "" && slices.Contains(parameters, name) {
			values[name] = value
		}
	}
	return values, nil
}
