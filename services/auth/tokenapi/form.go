package tokenapi

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxBody       = 64 << 10 // bytes
	maxParameters = 20
)

// parameters lists the parameters that the service reads. Errors contain no other names.
var parameters = []string{
	"grant_type", "scope", "client_id", "client_secret", "client_assertion_type", "client_assertion", "resource",
}

// readForm reads the parameters of a token request. It refuses repeated parameters and parameters in the URL,
// which is logged (RFC 6749 section 3.2). A parameter without a value counts as omitted. Only resource may be repeated (RFC
// 8707 section 2): its values are joined by spaces, which no URI has.
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
		return nil, &problem{
			status: http.StatusRequestEntityTooLarge, code: "invalid_request", text: "the body is larger than 64 KiB",
		}
	}
	if err != nil {
		p := invalidRequest("the body could not be read")
		p.cause = err
		return nil, p
	}
	return parseForm(string(body))
}

func unsupported(text string) *problem {
	return &problem{status: http.StatusUnsupportedMediaType, code: "invalid_request", text: text}
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
			return nil, invalidRequest(fmt.Sprintf("more than %d parameters", maxParameters))
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(rawName)
		value, err2 := url.QueryUnescape(rawValue)
		if err1 != nil || err2 != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, invalidRequest("the body is not form-urlencoded UTF-8")
		}
		known := slices.Contains(parameters, name)
		switch {
		case name == "resource" && strings.ContainsFunc(value, unicode.IsSpace):
			return nil, invalidTarget()
		case name == "resource":
			values[name] = strings.TrimSpace(values[name] + " " + value)
		case seen[name] && known:
			return nil, invalidRequest(name + " is repeated")
		case seen[name]:
			return nil, invalidRequest("a parameter is repeated")
		case known && value != "":
			values[name] = value
		}
		seen[name] = true
	}
	return values, nil
}
