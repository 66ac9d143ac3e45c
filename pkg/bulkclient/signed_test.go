package bulkclient

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// signer returns a function that signs, and the key set of its key under the kid.
func signer(t *testing.T, kid string) (sign func(text []byte) string, jwks []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	s, err := token.NewSigner(private, kid)
	must(t, err)
	public, err := s.PublicJWK()
	must(t, err)
	return func(text []byte) string {
		signed, err := s.Detach(token.ManifestType)
		must(t, err)
		_, err = signed.Write(text)
		must(t, err)
		signature, err := signed.Signature()
		must(t, err)
		return signature
	}, fmt.Appendf(nil, `{"keys":[%s]}`, public)
}

// signing makes the server compress its files as Sluice does and sign its manifest with their digests, with encoder, and
// the numbers.
func (s *fakeServer) signs(t *testing.T, encoder, numbers string) {
	t.Helper()
	for _, file := range s.files {
		var packed bytes.Buffer
		var w gzipblocks.Writer
		must(t, w.Reset(&packed))
		_, err := w.Write(file.plain)
		must(t, errors.Join(err, w.Close()))
		file.body, file.digest = packed.Bytes(), digestOf(packed.Bytes())
	}
	sign, jwks := signer(t, "the-key")
	s.jwks = jwks
	s.signing = func(text []byte) ([]byte, string) {
		var manifest map[string]any
		must(t, json.Unmarshal(text, &manifest))
		for _, list := range []string{"output", "deleted", "error"} {
			for _, item := range manifest[list].([]any) {
				item := item.(map[string]any)
				url := item["url"].(string)
				file := s.files[url[strings.LastIndexByte(url, '/')+1:]]
				item["extension"] = map[string]any{
					"sha256": sha(file.body), "size": len(file.body), "bytes": len(file.plain), "encoder": encoder,
				}
			}
		}
		if numbers != "" {
			manifest["extension"] = map[string]any{"resources": json.RawMessage(numbers)}
		}
		text, err := json.MarshalIndent(manifest, " ", "\t") // bytes that no reader of JSON would write again
		must(t, err)
		text = append(text, " \n"...)
		return text, sign(text)
	}
}

const complete = `[{"type":"Device","expected":6,"written":5,"filtered":0,"withheld":1,"leftOut":0,"failed":0},` +
	`{"type":"Patient","expected":5,"written":5,"filtered":0,"withheld":0,"leftOut":0,"failed":0}]`

// signedExport exports from a server that signs into a folder.
func signedExport(t *testing.T, encoder, numbers string, opts Options) string {
	t.Helper()
	s := newFakeServer(t)
	s.token = "t0"
	s.add(ListOutput, "Patient", "Patient.ndjson", 5)
	s.add(ListOutput, "Device", "Device.ndjson", 5)
	s.addLines(ListError, "OperationOutcome", "o.ndjson", []byte(`{"resourceType":"OperationOutcome"}`+"\n"))
	s.signs(t, encoder, numbers)
	s.keyCodes = []int{503, 502}
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Tokens = fixed("t0") })
	opts.Dir = t.TempDir()
	mustExport(t, c, opts)
	return opts.Dir
}

func TestVerifySignature(t *testing.T) {
	hidden := strings.NewReplacer(`"expected":5`, `"expected":null`, `"expected":6`, `"expected":null`, `"leftOut":0`, `"leftOut":null`).
		Replace(complete)
	for name, test := range map[string]struct {
		encoder, numbers string
		keep             bool
		unchecked        []string
	}{
		"all is checked":          {gzipblocks.Encoder, complete, false, nil},
		"compressed files":        {gzipblocks.Encoder, complete, true, nil},
		"of another encoder":      {"another", complete, false, []string{"text of 3 files"}},
		"compressed, of another":  {"another", complete, true, nil},
		"without numbers":         {gzipblocks.Encoder, "", true, []string{"no numbers"}},
		"with other extensions":   {gzipblocks.Encoder, `"x"`, true, []string{"no numbers"}},
		"without an expectation":  {gzipblocks.Encoder, strings.Replace(complete, `"expected":6`, `"expected":null`, 1), true, []string{"of Device"}},
		"without any expectation": {gzipblocks.Encoder, hidden, true, []string{"of Device, Patient"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := signedExport(t, test.encoder, test.numbers, Options{KeepGzip: test.keep})
			report, err := Verify(t.Context(), dir, nil)
			if err != nil || report.SignedBy != "the-key" || len(report.Unchecked) != len(test.unchecked) {
				t.Fatalf("signed by %q, not checked %q, %v", report.SignedBy, report.Unchecked, err)
			}
			for i, want := range test.unchecked {
				if !strings.Contains(report.Unchecked[i], want) {
					t.Errorf("not checked %q, want %q", report.Unchecked[i], want)
				}
			}
			_, other := signer(t, "the-key")
			if _, err := Verify(t.Context(), dir, content(t, dir, jwksFile)); err != nil {
				t.Errorf("with a trusted key set: %v", err)
			}
			if _, err := Verify(t.Context(), dir, other); !errors.Is(err, ErrMismatch) {
				t.Errorf("with another key set: %v", err)
			}
		})
	}
}

// Every single change of the folder is found, also by somebody who adjusts the unsigned records of the client.
func TestVerifyFindsTampering(t *testing.T) {
	foreign, foreignSet := signer(t, "the-key")
	replace := func(old, now string) func([]byte) []byte {
		return func(text []byte) []byte { return bytes.Replace(text, []byte(old), []byte(now), 1) }
	}
	first := func(old, now string) func(string) error {
		return func(dir string) error { return change(dir, signedFile, replace(old, now)) }
	}
	// rewrite changes a data file and its record in manifest.json.
	rewrite := func(dir, name string, how func([]byte) []byte) error {
		before, err := os.ReadFile(filepath.Join(dir, name))
		after := how(bytes.Clone(before))
		return errors.Join(err, os.WriteFile(filepath.Join(dir, name), after, 0o600),
			change(dir, manifestFile, replace(sha(before), sha(after))))
	}
	for name, damage := range map[string]func(dir string) error{
		"a byte of a file": func(dir string) error {
			return change(dir, "Patient.ndjson", func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
		},
		"a byte of a file, and its record": func(dir string) error {
			return rewrite(dir, "Patient.ndjson", func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
		},
		"a byte of a report, and its record": func(dir string) error {
			return rewrite(dir, "OperationOutcome.ndjson", replace("}\n", "} \n"))
		},
		"a count of the manifest":  first(`"count": 5`, `"count": 6`),
		"a number of the manifest": first(`"withheld": 1`, `"withheld": 0`),
		"a space of the manifest":  first("\n", " \n"),
		"the end of the manifest":  func(dir string) error { return change(dir, signedFile, func(b []byte) []byte { return b[:len(b)-1] }) },
		"the signature": func(dir string) error {
			return change(dir, signatureFile, func(b []byte) []byte { b[len(b)-3] ^= 3; return b })
		},
		"a signature of a foreign key": func(dir string) error {
			return change(dir, signatureFile, func([]byte) []byte { return []byte(foreign(content(t, dir, signedFile))) })
		},
		"a foreign key set":        func(dir string) error { return os.WriteFile(filepath.Join(dir, jwksFile), foreignSet, 0o600) },
		"no signature":             func(dir string) error { return os.Remove(filepath.Join(dir, signatureFile)) },
		"no key set":               func(dir string) error { return os.Remove(filepath.Join(dir, jwksFile)) },
		"no signed manifest":       func(dir string) error { return os.Remove(filepath.Join(dir, signedFile)) },
		"a removed file":           func(dir string) error { return os.Remove(filepath.Join(dir, "Patient.ndjson")) },
		"an added file":            func(dir string) error { return os.WriteFile(filepath.Join(dir, "More.ndjson"), nil, 0o600) },
		"an older manifest.json":   func(dir string) error { return change(dir, manifestFile, replace("2026-01-02T", "2026-01-01T")) },
		"a count of manifest.json": func(dir string) error { return change(dir, manifestFile, replace(`"count": 5`, `"count": 4`)) },
		"another URL in manifest.json": func(dir string) error {
			return change(dir, manifestFile, replace(`Patient.ndjson",`, `other.ndjson",`))
		},
		"a file less, and not in its list": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "OperationOutcome.ndjson")), unlist(dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := signedExport(t, gzipblocks.Encoder, complete, Options{})
			must(t, damage(dir))
			if report, err := Verify(t.Context(), dir, nil); !errors.Is(err, ErrMismatch) {
				t.Errorf("error %v, want ErrMismatch; not checked %q", err, report.Unchecked)
			}
		})
	}
}

// unlist removes the error files from manifest.json.
func unlist(dir string) error {
	return change(dir, manifestFile, func(text []byte) []byte {
		var all map[string]any
		err := json.Unmarshal(text, &all)
		all["error"] = []any{}
		text, encodeErr := json.Marshal(all)
		if errors.Join(err, encodeErr) != nil {
			panic("edit manifest.json")
		}
		return text
	})
}

// A server that signs numbers that do not add up, or other counts than it wrote, is found.
func TestVerifyNumbers(t *testing.T) {
	for name, numbers := range map[string]string{
		"a sum":           strings.Replace(complete, `"expected":6`, `"expected":7`, 1),
		"hidden in a sum": strings.Replace(complete, `"leftOut":0`, `"leftOut":null`, 1),
		"a lost file":     strings.Replace(complete, `"expected":6,"written":5`, `"expected":7,"written":6`, 1),
		"a type":          strings.Replace(complete, `"Device"`, `"Basic"`, 1),
	} {
		dir := signedExport(t, gzipblocks.Encoder, numbers, Options{})
		if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v, want ErrMismatch", name, err)
		}
	}
}

// An export ends if the signature or a digest of the manifest is wrong, or the keys cannot be had.
func TestExportChecksTheSignature(t *testing.T) {
	for name, change := range map[string]func(s *fakeServer){
		"a manifest changed on the way": func(s *fakeServer) {
			signing := s.signing
			s.signing = func(text []byte) ([]byte, string) {
				text, signature := signing(text)
				return bytes.Replace(text, []byte("2026"), []byte("2025"), 1), signature
			}
		},
		"a key that is not published": func(s *fakeServer) { s.jwks = []byte(`{"keys":[]}`) },
		"a file changed in the store": func(s *fakeServer) {
			s.files["Patient.ndjson"].set(append(s.files["Patient.ndjson"].plain, ' '))
			signing, body := s.signing, bytes.Clone(s.files["Patient.ndjson"].body)
			s.signing = func(text []byte) ([]byte, string) {
				defer func(now []byte) { s.files["Patient.ndjson"].body = now }(s.files["Patient.ndjson"].body)
				s.files["Patient.ndjson"].body = body[1:]
				return signing(text)
			}
		},
	} {
		s := newFakeServer(t)
		s.add(ListOutput, "Patient", "Patient.ndjson", 5)
		s.signs(t, gzipblocks.Encoder, "")
		change(s)
		c, _ := newClient(t, s, nil)
		if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir()}); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v, want ErrMismatch", name, err)
		}
	}
	s := newFakeServer(t)
	s.add(ListOutput, "Patient", "Patient.ndjson", 5)
	s.signs(t, gzipblocks.Encoder, "")
	s.keyCodes = []int{404}
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir}); err == nil {
		t.Error("the export has ended well without the keys")
	}
	mustExport(t, c, Options{Dir: dir, Resume: true})
	if _, err := Verify(t.Context(), dir, nil); err != nil {
		t.Errorf("resumed: %v", err)
	}
}

// A server without signatures, or with signatures of another kind, is not refused, and what that means is reported.
func TestVerifyWithoutASignature(t *testing.T) {
	for name, signature := range map[string]string{"none": "", "another kind": "eyJhbGciOiJSUzI1NiJ9..abc", "no JWS": "x"} {
		s := newFakeServer(t)
		s.add(ListOutput, "Patient", "Patient.ndjson", 5)
		s.signing = func(text []byte) ([]byte, string) { return text, signature }
		c, _ := newClient(t, s, nil)
		dir := t.TempDir()
		mustExport(t, c, Options{Dir: dir})
		report, err := Verify(t.Context(), dir, nil)
		if err != nil || report.SignedBy != "" || len(report.Unchecked) != 1 || !strings.Contains(report.Unchecked[0], "did not sign") {
			t.Errorf("%s: signed by %q, not checked %q, %v", name, report.SignedBy, report.Unchecked, err)
		}
		_, jwks := signer(t, "k")
		if _, err := Verify(t.Context(), dir, jwks); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s, with a trusted key set: %v", name, err)
		}
	}
}
