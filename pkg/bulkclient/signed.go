package bulkclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// The files of a finished folder whose server signs its manifests (docs/api.md).
const (
	signedFile    = "manifest.signed.json" // the manifest, byte by byte as it came
	signatureFile = "manifest.jws"         // its detached JWS
	jwksFile      = "jwks.json"            // the key set of the server at the time of the export
)

// signatureHeader has the signature of a manifest.
const signatureHeader = "X-JWS-Signature"

// Digest describes a file as the server stored it: the extension of its item (M-14).
type Digest struct {
	SHA256  string `json:"sha256"`  // of the gzip form, lower-case hex
	Size    int64  `json:"size"`    // bytes of the gzip form
	Bytes   int64  `json:"bytes"`   // bytes of the text
	Encoder string `json:"encoder"` // what made the gzip form; "": not known
}

// digestIn returns the digest in the extension of an item, nil if it has none: extensions of other servers are of any form.
func digestIn(extension json.RawMessage) *Digest {
	var d Digest
	if json.Unmarshal(extension, &d) != nil {
		return nil
	}
	if sum, err := hex.DecodeString(d.SHA256); err != nil || len(sum) != 32 {
		return nil
	}
	return &d
}

// numbersIn returns the numbers of each type in the extension of a manifest, nil if it has none.
func numbersIn(extension json.RawMessage) []export.Numbers {
	var root struct {
		Resources []export.Numbers `json:"resources"`
	}
	if json.Unmarshal(extension, &root) != nil {
		return nil
	}
	return root.Resources
}

// isSigned reports whether the header has a signature that this client knows. Other servers may sign in other ways.
func isSigned(signature string) bool {
	encoded, _, _ := strings.Cut(signature, ".")
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	var header struct{ Typ string }
	return err == nil && json.Unmarshal(text, &header) == nil && header.Typ == token.ManifestType
}

// signed is a manifest with its signature and the key set, each as it came.
type signed struct{ manifest, signature, jwks []byte }

// verify returns the kid of the key that signed. Errors are ErrMismatch.
func (s signed) verify() (kid string, err error) {
	kid, err = token.VerifyDetached(string(s.signature), s.jwks, token.ManifestType, bytes.NewReader(s.manifest))
	if err != nil {
		return "", fmt.Errorf("%w: the signature of the manifest: %w", ErrMismatch, err)
	}
	return printable(kid), nil
}

// keep verifies the signature of the manifest and writes it to the folder with the key set. It reports whether there is
// one. Requests are retried like polls.
func (c *Client) keep(ctx context.Context, folder *folder, manifest *Manifest) (bool, error) {
	if manifest.signature == "" {
		return false, folder.remove(signedFile, signatureFile, jwksFile) // of an earlier run
	}
	proof := signed{manifest: manifest.raw, signature: []byte(manifest.signature)}
	for attempt := 1; ; attempt++ {
		var err error
		if proof.jwks, err = c.jwks(ctx); err == nil {
			break
		}
		if err = c.retry(ctx, err, attempt); err != nil {
			return false, fmt.Errorf("get the keys of the manifest's signature: %w", err)
		}
	}
	if _, err := proof.verify(); err != nil {
		return false, err
	}
	return true, errors.Join(folder.replace(signedFile, proof.manifest), folder.replace(signatureFile, proof.signature),
		folder.replace(jwksFile, proof.jwks))
}

// jwks fetches the key set of the server. The manifest does not say where it is: whoever wrote it could name another.
func (c *Client) jwks(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	target := c.base.JoinPath(".well-known", "jwks.json")
	resp, err := c.send(ctx, http.MethodGet, target.String(), http.Header{"Accept": {"application/json, */*"}}, nil, false)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxItem))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, lost(ctx, err)
	}
	return text, nil
}

// signed returns the signed manifest of the folder. jwks, if not nil, replaces the key set of the folder.
func (f *folder) signed(jwks []byte) (proof signed, err error) {
	proof.jwks = jwks
	for name, to := range map[string]*[]byte{
		signedFile: &proof.manifest, signatureFile: &proof.signature, jwksFile: &proof.jwks,
	} {
		if *to != nil {
			continue
		}
		text, readErr := f.root.ReadFile(name)
		if errors.Is(readErr, fs.ErrNotExist) {
			readErr = fmt.Errorf("%w: %s is missing", ErrMismatch, name)
		}
		*to, err = text, errors.Join(err, readErr)
	}
	return proof, err
}

// check compares the results of the folder's manifest.json with the signed manifest, and sets the digests of their files
// to the signed ones. It returns all differences joined, and what the numbers of the manifest do not tell.
func (s signed) check(done finished, results []result) (kid string, unchecked []string, wrong error) {
	kid, err := s.verify()
	if err != nil {
		return "", nil, err
	}
	manifest, err := readManifest(bytes.NewReader(s.manifest), &url.URL{})
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", signedFile, err)
	}
	listed, err := files(manifest, nil)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", signedFile, err)
	}
	if done.TransactionTime != manifest.TransactionTime || done.Request != manifest.Request {
		wrong = fmt.Errorf("%s: %w: it is of another export than the signed manifest", manifestFile, ErrMismatch)
	}
	byURL := make(map[string]File, len(listed))
	for _, file := range listed {
		byURL[file.URL] = file
	}
	for i := range results {
		have := &results[i].file
		want, found := byURL[have.URL]
		delete(byURL, have.URL)
		switch {
		case !found:
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w: it is not in the signed manifest",
				printable(results[i].stored.File), ErrMismatch))
			continue
		case have.List != want.List || want.Type != "" && have.Type != want.Type || have.Count != want.Count:
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w: its list, type or count is not that of the signed manifest",
				printable(results[i].stored.File), ErrMismatch))
		}
		have.Digest = want.Digest
	}
	for _, file := range listed {
		if _, missing := byURL[file.URL]; missing {
			wrong = errors.Join(wrong, fmt.Errorf("%w: a file of type %s of the signed manifest is missing", ErrMismatch,
				printable(file.Type)))
		}
	}
	return kid, unknown(manifest.numbers), errors.Join(wrong, checkNumbers(manifest, listed))
}

// checkNumbers checks that the numbers of each type add up, and that as many resources were written as its files have.
func checkNumbers(manifest *Manifest, listed []File) (wrong error) {
	if manifest.numbers == nil {
		return nil
	}
	written := map[string]int64{}
	for _, file := range listed {
		if file.List == ListOutput {
			written[file.Type] += max(file.Count, 0)
		}
	}
	for _, n := range manifest.numbers {
		if n.Written != written[n.Type] {
			wrong = errors.Join(wrong, fmt.Errorf("%w: the files of %s have %d resources, but %d were written",
				ErrMismatch, printable(n.Type), written[n.Type], n.Written))
		}
		delete(written, n.Type)
		if n.Expected != nil && (n.LeftOut == nil || *n.Expected != n.Written+n.Filtered+n.Withheld+*n.LeftOut) {
			wrong = errors.Join(wrong, fmt.Errorf("%w: the numbers of %s do not add up", ErrMismatch, printable(n.Type)))
		}
	}
	for typ := range written {
		wrong = errors.Join(wrong, fmt.Errorf("%w: the manifest has files of %s without numbers", ErrMismatch, printable(typ)))
	}
	return wrong
}

// unknown names what the numbers of a manifest do not tell.
func unknown(numbers []export.Numbers) (found []string) {
	var types []string
	for _, n := range numbers {
		if n.Expected == nil {
			types = append(types, printable(n.Type))
		}
	}
	if numbers == nil {
		return []string{"completeness: the manifest has no numbers of what was expected"}
	}
	if types != nil {
		return []string{"completeness of " + strings.Join(types, ", ") + ": the server did not say how much was expected"}
	}
	return nil
}
