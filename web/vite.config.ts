import { defineConfig } from "vite";

// biome-ignore lint/style/noDefaultExport: Vite asks for it
export default defineConfig({
  root: import.meta.dirname,
  // The daemon serves the files from the root of its own port.
  base: "/",
  build: {
    outDir: "dist",
    emptyOutDir: true,
    target: ["chrome120", "firefox121", "safari17"],
    // The page's policy allows files of its own only: nothing may become a data: URL.
    assetsInlineLimit: 0,
    modulePreload: false,
    chunkSizeWarningLimit: 1000,
    rollupOptions: {
      // Names without hashes: nothing is cached, and a change shows as a change.
      output: { entryFileNames: "assets/page.js", assetFileNames: "assets/[name][extname]" },
    },
  },
});
