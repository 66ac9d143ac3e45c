package tokenapi_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzForm: every body gets a 4xx response of RFC 6749, because no client is registered.
func FuzzForm(f *testing.F) {
	service, _ := embeddedFixture(f)
	for _, seed := range []string{
		"", "&&=&", "grant_type=client_credentials", "grant_type=client_credentials&scope=system%2F*.rs&client_assertion_type=" +
			"urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=e30.e30.e30", "a=%zz", "%ff=", "a=1&a=2",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, "/auth/token", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		answer := httptest.NewRecorder()
		service.service.ServeHTTP(answer, r)
		if answer.Code < 400 || answer.Code > 499 || !strings.HasPrefix(answer.Body.String(), `{"error":"`) {
			t.Errorf("%d %s for %q", answer.Code, answer.Body, body)
		}
	})
}
