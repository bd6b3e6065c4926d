// What outlives a reload and the back button: the settings in the page's address, the photo in this tab's session storage. Nothing is kept elsewhere.

const SETTINGS = ["model", "target", "contrast", "method", "stage", "colormap", "groups"];
const PHOTO = "paca.photo";
const MOST = 3e6; // bytes of a photo that is kept; browsers give a page about 5 MB of text

/** The settings that the page's address holds; "" where it says nothing. */
export function settings() {
  const given = new URLSearchParams(location.search);
  return Object.fromEntries(SETTINGS.map((name) => [name, given.get(name) ?? ""]));
}

/** Writes the settings into the page's address, as a step that the back button takes back. */
export function remember(question) {
  const address = new URL(location.href);
  for (const name of SETTINGS) {
    if (question[name]) address.searchParams.set(name, question[name]);
    else address.searchParams.delete(name);
  }
  if (address.href !== location.href) history.pushState(null, "", address);
}

/** Keeps a photo, unless it is too large or the browser forbids it: then a reload begins without one. */
export async function keepPhoto(file) {
  try {
    sessionStorage.removeItem(PHOTO);
    if (file.size > MOST) return;
    const data = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = reject;
      reader.readAsDataURL(file);
    });
    sessionStorage.setItem(PHOTO, JSON.stringify({ name: file.name, type: file.type, data }));
  } catch {
    // the storage is full or switched off
  }
}

/** The photo that was kept, as a File; null where there is none. */
export function keptPhoto() {
  try {
    const { name, type, data } = JSON.parse(sessionStorage.getItem(PHOTO));
    return new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name, { type });
  } catch {
    return null;
  }
}
