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
	"path"
	"regexp"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// The files of a finished folder whose server signs its manifests (docs/api.md). Those of further pages are numbered: see
// numbered.
const (
	signedFile    = "manifest.signed.json" // the manifest, byte by byte as it came
	signatureFile = "manifest.jws"         // its detached JWS
	jwksFile      = "jwks.json"            // the key set of the server at the time of the export
)

// signedName matches the names of signed manifests and their signatures.
var signedName = regexp.MustCompile(`^manifest(\.signed(\.\d+)?\.json|(\.\d+)?\.jws)$`)

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

// signed is a manifest with its signatures and the key set, each as it came.
type signed struct {
	pages []page // at least one
	jwks  []byte
}

// numbered returns the name of a file of the n'th page, from 1: manifest.jws, manifest.2.jws.
func numbered(name string, n int) string {
	if n == 1 {
		return name
	}
	extension := path.Ext(name)
	return fmt.Sprintf("%s.%d%s", strings.TrimSuffix(name, extension), n, extension)
}

// verify returns the kid of the key that signed the first page. Errors are ErrMismatch.
func (s signed) verify() (first string, err error) {
	for i, page := range s.pages {
		kid, err := token.VerifyDetached(page.signature, s.jwks, token.ManifestType, bytes.NewReader(page.manifest))
		if err != nil {
			return "", fmt.Errorf("%w: the signature of the manifest: %w", ErrMismatch, err)
		}
		if i == 0 {
			first = printable(kid)
		}
	}
	return first, nil
}

// read returns the manifest with all pages. Errors are ErrMismatch.
func (s signed) read() (all *Manifest, err error) {
	for i, page := range s.pages {
		manifest, err := readManifest(bytes.NewReader(page.manifest), &url.URL{})
		if err == nil && (manifest.Next == "") != (i == len(s.pages)-1) {
			err = malformed("it has more or fewer pages than the folder")
		}
		if err == nil && i > 0 {
			err = all.join(manifest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", numbered(signedFile, i+1), err)
		}
		if i == 0 {
			all = manifest
		}
	}
	return all, nil
}

// keep verifies the signature of the manifest and writes it to the folder with the key set. It reports whether there is
// one. Requests are retried like polls.
func (c *Client) keep(ctx context.Context, folder *folder, manifest *Manifest) (bool, error) {
	if len(manifest.pages) == 0 {
		return false, folder.remove(signedFile, signatureFile, jwksFile) // of an earlier run
	}
	proof := signed{pages: manifest.pages}
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
	for i, page := range proof.pages {
		err := errors.Join(folder.replace(numbered(signedFile, i+1), page.manifest),
			folder.replace(numbered(signatureFile, i+1), []byte(page.signature)))
		if err != nil {
			return false, err
		}
	}
	return true, folder.replace(jwksFile, proof.jwks)
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
	read := func(name string) []byte {
		text, readErr := f.root.ReadFile(name)
		if errors.Is(readErr, fs.ErrNotExist) {
			readErr = fmt.Errorf("%w: %s is missing", ErrMismatch, name)
		}
		err = errors.Join(err, readErr)
		return text
	}
	if proof.jwks = jwks; jwks == nil {
		proof.jwks = read(jwksFile)
	}
	for n := 1; ; n++ {
		if _, missing := f.root.Stat(numbered(signedFile, n)); n > 1 && errors.Is(missing, fs.ErrNotExist) || err != nil {
			return proof, err
		}
		proof.pages = append(proof.pages, page{read(numbered(signedFile, n)), string(read(numbered(signatureFile, n)))})
	}
}

// check compares the results of the folder's manifest.json with the signed manifest, and sets the digests of their files
// to the signed ones. It returns all differences joined, and what the numbers of the manifest do not tell.
func (s signed) check(done finished, results []result) (kid string, unchecked []string, wrong error) {
	kid, err := s.verify()
	if err != nil {
		return "", nil, err
	}
	manifest, err := s.read()
	if err != nil {
		return "", nil, err
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
